//! What every test needs: the cluster, a namespace, the operator, databases, and to wait for what happens.

mod cluster;
mod lab;
mod life;
mod operator;
pub mod secrecy;
mod space;
mod watch;

pub use cluster::{Cluster, cluster};
pub use lab::{Lab, assert_says, clickhouse, condition, own_postgres};
pub use life::another;
pub use operator::{Operator, image, install_definitions, operator};
pub use space::Space;
