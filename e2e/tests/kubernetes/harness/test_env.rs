//! A pair of new databases, a namespace, and Mirrors between them.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
    thread,
};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams},
};
use walferry::api::{self, conditions};

use super::{Operator, TestNamespace, cluster, operator, secrecy};
use crate::support::{self, DEADLINE, Mirror, Pg, Server};

/// A PostgreSQL that pods can reach, shared by the tests of this process.
fn postgres() -> Arc<Server> {
    static SERVER: OnceLock<Arc<Server>> = OnceLock::new();
    SERVER.get_or_init(|| own_postgres(&[])).clone()
}

/// A test's own PostgreSQL that pods can reach, with these options of `e2e/tools/servers`.
pub fn own_postgres(options: &[&str]) -> Arc<Server> {
    let address = cluster().address().to_string();
    Arc::new(Server::postgres(Pg::V18, &[&["--listen", &address], options].concat()))
}

/// A ClickHouse that pods can reach, shared by the tests of this process.
pub fn clickhouse() -> Arc<Server> {
    static SERVER: OnceLock<Arc<Server>> = OnceLock::new();
    let start = || {
        let address = cluster().address().to_string();
        Arc::new(Server::clickhouse(&["--listen", &address]))
    };
    SERVER.get_or_init(start).clone()
}

/// The databases of one test, its namespace, and the operator. When the test succeeds, no password may have
/// leaked, and its Mirrors are deleted and must leave nothing at the source.
#[derive(Debug)]
pub struct TestEnv {
    pub namespace: TestNamespace,
    pub operator: &'static Operator,
    databases: support::TestEnv,
    /// Whether the end of the test asserts that Mirrors leave nothing at the source.
    pub leaves_nothing: bool,
}

impl Deref for TestEnv {
    type Target = support::TestEnv;

    fn deref(&self) -> &support::TestEnv {
        &self.databases
    }
}

impl TestEnv {
    /// For a test that can run next to others.
    pub fn new() -> TestEnv {
        TestEnv::with(TestNamespace::new(), support::TestEnv::on(postgres(), clickhouse()))
    }

    /// For a test that would affect others: it runs while no other does.
    pub fn alone() -> TestEnv {
        TestEnv::with(TestNamespace::alone(), support::TestEnv::on(postgres(), clickhouse()))
    }

    /// Databases in these servers, which must also listen at the cluster's address.
    pub fn with(namespace: TestNamespace, databases: support::TestEnv) -> TestEnv {
        TestEnv { namespace, operator: operator(), databases, leaves_nothing: true }
    }

    /// A Mirror of these tables of schema public with its peers and Secrets. Pods can reach the servers.
    pub fn mirror(&self, tables: &[&str]) -> Mirror {
        let address = cluster().address().to_string();
        let mut mirror = self.databases.mirror(tables);
        mirror.postgres["spec"]["postgres"]["host"] = address.as_str().into();
        let url = &mut mirror.clickhouse["spec"]["clickhouse"]["url"];
        *url = url.as_str().unwrap().replace("127.0.0.1", &address).into();
        mirror
    }

    /// Applies all documents of a Mirror and returns its name.
    #[track_caller]
    pub fn apply(&self, mirror: &Mirror) -> String {
        let (secrets, others): (Vec<_>, Vec<_>) =
            mirror.documents().into_iter().partition(|document| document["kind"] == "Secret");
        // Secrets come first, so that nothing is missing when the operator reconciles the other objects.
        for document in secrets.iter().chain(&others) {
            self.namespace.apply(document);
        }
        mirror.mirror["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// Applies a Mirror and waits until it streams and what is committed now has arrived.
    #[track_caller]
    pub fn streaming(&self, mirror: &Mirror) -> String {
        let name = self.apply(mirror);
        self.until_ready(&name);
        self.settle(&name);
        name
    }

    /// Watches a Mirror until `look` returns something.
    #[track_caller]
    pub fn until<T>(&self, name: &str, awaited: &str, mut look: impl FnMut(&api::Mirror) -> Option<T>) -> T {
        self.namespace.until(name, awaited, |mirror: Option<&api::Mirror>| look(mirror?))
    }

    /// Waits until Ready is True for the Mirror's current generation.
    #[track_caller]
    pub fn until_ready(&self, name: &str) -> api::Mirror {
        self.until(name, "Ready", |mirror| {
            let status = mirror.status.as_ref()?;
            let ready = condition(&status.conditions, conditions::READY)?;
            (ready.status == "True" && status.observed_generation == mirror.metadata.generation)
                .then(|| mirror.clone())
        })
    }

    /// Waits until the Mirror is Stalled for this reason, which must be the reason of Ready too.
    #[track_caller]
    pub fn until_stalled(&self, name: &str, reason: &str) {
        self.until(name, &format!("Stalled with {reason}"), |mirror| {
            let conditions = &mirror.status.as_ref()?.conditions;
            let stalled = condition(conditions, conditions::STALLED)?;
            let ready = condition(conditions, conditions::READY)?;
            (stalled.reason == reason && ready.reason == reason && ready.status == "False").then_some(())
        });
    }

    /// Waits until the Mirror's status reports that what is committed now has arrived.
    #[track_caller]
    pub fn settle(&self, name: &str) {
        let lsn = self.lsn();
        self.until(name, "caught up with the source", |mirror| {
            let seen = support::parse_lsn(mirror.status.as_ref()?.last_lsn.as_ref()?)?;
            (seen >= lsn).then_some(())
        });
    }

    /// The pods of a Mirror's replicator.
    pub fn replicators(&self, name: &str) -> Vec<Pod> {
        let selector = format!("walferry.dev/mirror={name},app.kubernetes.io/component=replicator");
        let pods = self.namespace.api::<Pod>();
        cluster().ask(async || pods.list(&ListParams::default().labels(&selector)).await).unwrap().items
    }

    /// Deletes an object and waits until it does not exist any more.
    #[track_caller]
    pub fn delete<K>(&self, name: &str)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        let api = self.namespace.api::<K>();
        cluster().ask(async || api.delete(name, &DeleteParams::default()).await).unwrap();
        self.namespace.until::<K, ()>(name, "deleted", |object| object.is_none().then_some(()));
    }

    /// Asserts that none of these passwords can be read anywhere but in its Secret.
    #[track_caller]
    pub fn assert_secret(&self, passwords: &[&str]) {
        secrecy::check(&self.namespace, passwords);
    }

    /// The names of slots and publications in the source's database.
    pub fn left_at_source(&self) -> String {
        let database = &self.database;
        self.source(&format!(
            "SELECT slot_name FROM pg_replication_slots WHERE database = '{database}'
             UNION ALL SELECT pubname FROM pg_publication"
        ))
    }
}

/// The condition of this type.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.operator.show());
            return;
        }
        self.assert_secret(&["role-test", "limited-test"]);
        let mirrors: Api<api::Mirror> = self.namespace.api();
        for mirror in cluster().block_on(mirrors.list(&ListParams::default())).unwrap() {
            self.delete::<api::Mirror>(&mirror.name_any());
        }
        if self.leaves_nothing {
            assert_eq!(self.left_at_source(), "", "left at the source after {DEADLINE:?}");
        }
    }
}
