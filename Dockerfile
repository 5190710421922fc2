# Both images may be replaced: BUILD_IMAGE needs cargo, a C compiler and a CA bundle, BASE_IMAGE the same or a later glibc.
ARG BUILD_IMAGE=rust:1.95-bookworm
# glibc and libgcc, which is all that walferry links to, and nothing that a break-in could use: no shell, no package manager.
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12

FROM ${BUILD_IMAGE} AS build
WORKDIR /walferry
# Without rust-toolchain.toml: the image is the toolchain, and rustup would fetch lint tools that nobody needs here.
COPY Cargo.toml Cargo.lock ./
COPY src src
# The target folder may be a mounted cache, which is no part of the image, so the program is copied out of it.
RUN cargo build --release --locked --bin walferry --target-dir /target && cp /target/release/walferry /walferry/

FROM ${BASE_IMAGE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="walferry" \
      org.opencontainers.image.description="Keeps ClickHouse in step with PostgreSQL by logical replication" \
      org.opencontainers.image.source="https://github.com/walferry/walferry" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# For tls.mode VerifyFull and VerifyCa without a CA of one's own.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /walferry/walferry /usr/local/bin/walferry
# nobody's: a number, so that runAsNonRoot can be checked without a user database
USER 65532:65532
EXPOSE 9464
ENTRYPOINT ["/usr/local/bin/walferry"]
