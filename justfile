# The commands of this repository, one a line in `just --list`. They call the scripts in e2e/ and .ci/, which work without just.

# List the recipes
default:
    @just --list --unsorted

# Every test: unit, end-to-end, in Kubernetes, chaos. Arguments go to cargo test
test *ARGS:
    ./e2e/test {{ ARGS }}

# Unit tests alone, or those whose name contains NAME: no server, nothing to download but crates
unit NAME="":
    cargo test --lib {{ NAME }}

# End-to-end tests, on real servers, or those whose name contains NAME
e2e NAME="":
    ./e2e/test --test e2e {{ NAME }}

# Tests of the operator in a real cluster, or those whose name contains NAME
k8s NAME="":
    ./e2e/test --test kubernetes {{ NAME }}

# The chaos test, for example: just chaos --minutes 30 --seed 7
chaos *ARGS:
    ./e2e/chaos {{ ARGS }}

# Large workloads in full size, for example: just large transaction
large *ARGS:
    ./e2e/tools/large {{ ARGS }}

# Fuzz one decoder for SECONDS; takes cargo-fuzz and a nightly toolchain
fuzz TARGET SECONDS="600":
    cd fuzz && cargo +nightly fuzz run --fuzz-dir . {{ TARGET }} -- -max_total_time={{ SECONDS }} -rss_limit_mb=2048

# A guided tour on real servers; `just demo kubernetes` shows the operator
demo *ARGS:
    ./e2e/demo {{ ARGS }}

# Everything that is fast to judge
lint: lint-rust lint-text

# Formatting, clippy and rustdoc, all without warnings
lint-rust:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --lib

# shellcheck over each shell script, and spelling, by the rules in _typos.toml
lint-text:
    .ci/lint

# Licences, banned crates, sources and known weaknesses of what is built in
dependencies:
    .ci/dependencies

# Format the code
fmt:
    cargo fmt

# Regenerate crds/, the chart's copy of it and docs/api.md from the code
generate:
    ./e2e/tools/generate

# Figures against baselines of the same run, for example: just bench stream --rounds 5
bench *ARGS:
    ./e2e/bench {{ ARGS }}

# The image as an OCI archive, without a Docker engine; takes root
image:
    ./e2e/tools/image

# Set VERSION everywhere, close the changelog's section, commit and tag. RELEASING.md says what comes before and after
release VERSION:
    #!/usr/bin/env bash
    set -euo pipefail
    version={{ quote(VERSION) }}
    fail() { echo "release: $*" >&2; exit 1; }
    [[ "$version" =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || fail "$version is not a version such as 0.2.0"
    [ -z "$(git status --porcelain)" ] || fail "commit or stash your changes first"
    ! git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null || fail "the tag v$version exists"
    grep -q '^## Unreleased$' CHANGELOG.md || fail "CHANGELOG.md has no section Unreleased"
    old=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    sed -i "0,/^version = \"$old\"/s//version = \"$version\"/" Cargo.toml
    # each lock file has the version on the line after the name
    sed -i "/^name = \"walferry\"$/{n;s/\"$old\"/\"$version\"/}" Cargo.lock fuzz/Cargo.lock
    sed -i "s/^\(version\|appVersion\): $old$/\1: $version/" charts/walferry/Chart.yaml
    sed -i "s/newTag: $old$/newTag: $version/" config/manager/kustomization.yaml
    grep -rlF "$old" --include='*.md' docs | xargs --no-run-if-empty sed -i "s/\(tag: v\?\|targetRevision: v\?\|newTag: \|ref=v\|walferry:\)$old/\1$version/"
    sed -i "s/^## Unreleased$/## Unreleased\n\n## $version - $(date --utc +%F)/" CHANGELOG.md
    cargo metadata --locked --format-version 1 --no-deps >/dev/null
    git commit --quiet --all --message "release: $version"
    git tag --annotate "v$version" --message "walferry $version"
    git show --stat --format='%h %s'
    echo "Look at the commit, then publish it: git push --atomic origin main v$version"
