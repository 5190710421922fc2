//! Shared by all tests in Kubernetes: the cluster, a namespace, the operator, databases, and waiting for
//! events.

mod cluster;
mod life;
mod operator;
pub mod secrecy;
mod test_env;
mod test_namespace;
mod watch;

pub use cluster::{Cluster, cluster};
pub use life::another;
pub use operator::{Operator, image, install_crds, operator};
pub use test_env::{TestEnv, clickhouse, condition, own_postgres};
pub use test_namespace::TestNamespace;
