//! The Helm chart, the kustomize manifests, the samples and Argo CD's health check: rendered by the real
//! tools, without a cluster.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

mod argocd;
mod chart;
mod kustomize;
mod samples;
mod tools;
