//! A Mirror from `kubectl apply` to `kubectl delete`.

use crate::{
    harness::{TestEnv, condition, image},
    support::eventually,
};

#[test]
fn applied_it_streams_and_deleted_it_leaves_nothing() {
    let env = TestEnv::new();
    env.sql(
        "CREATE TABLE users (id bigint PRIMARY KEY, name text);
         INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 1000) n",
    );
    let name = env.streaming(&env.mirror(&["users"]));
    env.assert_table("users", "id, name", "id");
    env.sql("UPDATE users SET name = 'renamed' WHERE id = 7; DELETE FROM users WHERE id = 8");
    env.settle(&name);
    env.assert_table("users", "id, name", "id");

    let pods = env.replicators(&name);
    let [pod] = &pods[..] else { panic!("one pod, not {}", pods.len()) };
    assert_eq!(pod.spec.as_ref().unwrap().containers[0].image.as_deref(), Some(&*image()));
    let status = env.until_ready(&name).status.unwrap();
    assert!(condition(&status.conditions, "Stalled").is_none());
    let slot =
        env.source_value("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()");
    assert_eq!(status.slot_name.as_deref(), Some(&*slot));

    // TestEnv checks this again when it is dropped, after all Mirrors are deleted.
    env.delete::<walferry::api::Mirror>(&name);
    assert_eq!(env.left_at_source(), "");
    eventually("the end of the replicator", || env.replicators(&name).is_empty());
    env.assert_table("users", "id, name", "id");
}
