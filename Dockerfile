# Both images may be replaced: BUILD_IMAGE needs cargo, a C compiler and a CA bundle, BASE_IMAGE glibc.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /walferry
# Without rust-toolchain.toml: the image is the toolchain, and rustup would fetch lint tools that nobody needs here.
COPY Cargo.toml Cargo.lock ./
COPY src src
RUN cargo build --release --locked --bin walferry

FROM ${BASE_IMAGE}
# For tls.mode VerifyFull and VerifyCa without a CA of one's own.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /walferry/target/release/walferry /usr/local/bin/walferry
# nobody's: a number, so that runAsNonRoot can be checked without a user database
USER 65532:65532
EXPOSE 9464
ENTRYPOINT ["/usr/local/bin/walferry"]
