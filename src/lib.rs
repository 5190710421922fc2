//! walferry replicates PostgreSQL tables to ClickHouse by logical replication.
//!
//! # Architecture
//! Modules are layers with one-way imports; the test in `tests/layers.rs` guards the arrows.
//!
//! | layer | what it is | may import |
//! |---|---|---|
//! | [`fault`] | the catalogue of reasons, and remedies | nothing of ours |
//! | [`model`] | positions, tables, tuples, progress, settings | `fault` |
//! | [`api`] | the resources `ReplicationPeer` and `Mirror`, types only | nothing of ours |
//! | [`tls`] | TLS client settings for both databases | `fault`, `model` |
//! | [`status`] | conditions made from progress | `fault`, `api`, `model` |
//! | [`postgres`] | sessions, catalog, slot, publication, wire protocol, decoders | `fault`, `model`, `tls` |
//! | [`replication`] | the engine and its destination contract | `fault`, `model`, `postgres` |
//! | [`clickhouse`] | client, DDL, types, column encoders, state, the destination | `fault`, `model`, `tls`, the destination contract |
//! | [`resolve`] | references and Secrets into one configuration | `api`, `model` |
//! | [`check`] | what must hold before replication starts | `fault`, `model`, `postgres`, `clickhouse`, `replication` |
//! | [`cleanup`] | removes slot, publication and state | `fault`, `model`, `postgres`, `clickhouse`, `replication` |
//! | [`http`], [`telemetry`] | `/status` and `/metrics`; logs | `fault`, `api`, `model`, `status` |
//! | [`operator`] | the Kubernetes controllers | `fault`, `api`, `model`, `status`, `resolve`, `check`, `cleanup`, `postgres`, `clickhouse`, `http`, `telemetry` |
//! | [`cli`] | one file a command | everything |
//! | [`fuzzing`] | what `cargo fuzz` and the tests feed arbitrary bytes to | everything |

pub mod api;
pub mod check;
pub mod cleanup;
pub mod cli;
pub mod clickhouse;
pub mod fault;
#[cfg(any(test, doc, fuzzing))]
pub mod fuzzing;
pub mod http;
pub mod model;
pub mod operator;
pub mod postgres;
pub mod replication;
pub mod resolve;
pub mod status;
pub mod telemetry;
pub mod tls;
