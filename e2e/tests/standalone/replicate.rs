//! `walferry replicate`, as a replicator's pod runs it: one file, and Secrets in a folder.

use std::path::{Path, PathBuf};

use serde_json::json;
use walferry::fault::{Reason, Side};

use crate::{
    on_both,
    support::{Mirror, Pg, Run, TestEnv, failed_for, stalled_for, walferry},
};

const UID: &str = "4b0f7f7e-1c2d-4e5f-8a9b-0c1d2e3f4a5b";

/// The files that a pod has mounted.
pub struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    /// Secrets behind the symbolic links that kubelet creates in a projected volume.
    pub fn new(mirror: &Mirror) -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let mut alone = mirror.clone();
        alone.secrets.clear();
        std::fs::write(folder.path().join("mirror.yaml"), alone.to_yaml()).unwrap();
        let secrets = folder.path().join("secrets");
        for (secret, data) in &mirror.secrets {
            let values = secrets.join("..2026_11_21").join(secret);
            std::fs::create_dir_all(&values).unwrap();
            for (key, value) in data.as_object().unwrap() {
                std::fs::write(values.join(key), value.as_str().unwrap()).unwrap();
            }
            std::os::unix::fs::symlink(Path::new("..data").join(secret), secrets.join(secret)).unwrap();
        }
        std::os::unix::fs::symlink("..2026_11_21", secrets.join("..data")).unwrap();
        Mounted { folder }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("mirror.yaml")
    }

    fn secrets(&self) -> PathBuf {
        self.folder.path().join("secrets")
    }

    pub fn run(&self) -> Run {
        Run::replicate(&self.config(), &self.secrets())
    }
}

fn rows_flow(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i");
    let mut mirror = env.mirror(&["t"]);
    // Tests share the slots of a server, so each has a UID of its own.
    let uid = UID.replace("4b0f7f7e", &format!("{:08x}", env.lsn() & 0xffff_ffff));
    mirror.mirror["metadata"]["uid"] = json!(uid);
    let mounted = Mounted::new(&mirror);
    let mut run = mounted.run();
    run.until_streaming();
    env.sql("INSERT INTO t VALUES (2000, 'new')");
    env.settle(&mut run);
    env.assert_table("t", "id, v", "id");
    assert_eq!(run.status()["slotName"], format!("walferry_{}", uid.replace('-', "")));
    run.stop();
    // It continues where it stopped; `run` with the same UID is the same Mirror.
    env.sql("DELETE FROM t WHERE id < 10");
    env.catch_up(&mirror);
    env.assert_table("t", "id, v", "id");
    env.command("teardown", &mirror, &[]).exits(0);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(env.source_value(slots), "0");
}

/// A new row filter needs another publication, which only the tables' owner can change: the table waits with
/// the statements for the owner, and continues once they are run.
#[test]
fn waits_for_the_owner_of_the_publication() {
    let env = TestEnv::new(Pg::V18);
    let name = &env.database;
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20)");
    env.admin(&format!(
        "CREATE ROLE {name}_least LOGIN REPLICATION PASSWORD 'least-test';
        GRANT USAGE ON SCHEMA public TO {name}_least; GRANT SELECT ON public.t TO {name}_least"
    ));
    let mut mirror = env.mirror(&["t"]);
    // The owner's role creates the publication; a role that may only read continues with it.
    env.catch_up(&mirror);
    mirror.secrets[0].1 = json!({"username": format!("{name}_least"), "password": "least-test"});
    mirror.table(0)["where"] = json!("id > 5");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "filter public.t"});
    let mounted = Mounted::new(&mirror);
    let mut run = mounted.run();
    let failure = failed_for(&mut run, "t", Reason::SourcePublicationUnusable);
    let statements = failure.sql(Side::Source);
    assert!(statements.starts_with(&format!("-- as {name}\n")), "{failure:?}");
    env.sql(&statements);
    run.stop();
    let mut run = mounted.run();
    run.until_streaming();
    env.settle(&mut run);
    assert_eq!(env.target_value("SELECT min(id) FROM t FINAL"), "6");
    run.stop();
    env.command("teardown", &mirror, &[]).exits(0).says(&["DROP PUBLICATION", &format!("as {name}")]);
    env.admin(&format!("DROP OWNED BY {name}_least; DROP ROLE {name}_least"));
}

on_both!(rows_flow);

/// There is no preflight check: a failure that needs manual action is in the status, and the process keeps
/// running.
#[test]
fn a_fault_of_the_source_stalls() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[0].1["password"] = json!("wrong");
    let mounted = Mounted::new(&mirror);
    let mut run = mounted.run();
    stalled_for(&mut run, Reason::SourceAuthenticationFailed);
    run.stop();
}

/// The process doesn't end when the copy is complete, because Kubernetes would restart it.
#[test]
fn a_finished_copy_is_still_shown() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["snapshot"] = json!({"mode": "InitialOnly"});
    let mounted = Mounted::new(&mirror);
    let mut run = mounted.run();
    run.until_status("the copy to finish", |status| (status["phase"] == "Finished").then_some(()));
    assert_eq!(env.target("SELECT id FROM t FINAL"), "1\n");
    run.stop();
}

#[test]
fn wrong_files_are_refused() {
    let env = TestEnv::new(Pg::V18);
    let mirror = env.mirror(&["t"]);
    let mounted = Mounted::new(&mirror);
    let (config, secrets) = (mounted.config(), mounted.secrets());
    let replicate = || {
        let arguments = ["--config", config.to_str().unwrap(), "--secrets", secrets.to_str().unwrap()];
        walferry(&[&["replicate"][..], &arguments, &["--http", "127.0.0.1:0"]].concat())
    };
    std::fs::remove_file(secrets.join("source-login/password")).unwrap();
    std::fs::remove_file(secrets.join("target-login")).unwrap();
    replicate().exits(2).says(&["key password of Secret source-login", "no folder", "secrets/target-login"]);
    std::fs::write(&config, mirror.to_yaml()).unwrap();
    replicate().exits(2).says(&["Secret source-login", "Secrets are read from", "take this document out"]);
}
