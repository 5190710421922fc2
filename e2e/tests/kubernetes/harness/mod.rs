//! What every test needs: the cluster, a namespace, the operator, databases, and to wait for what happens.

mod cluster;
mod life;
mod operator;
pub mod secrecy;
mod test_env;
mod test_namespace;
mod watch;

pub use cluster::{Cluster, cluster};
pub use life::another;
pub use operator::{Operator, image, install_definitions, operator};
pub use test_env::{TestEnv, assert_says, clickhouse, condition, own_postgres};
pub use test_namespace::TestNamespace;
