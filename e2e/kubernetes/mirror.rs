//! A Mirror from `kubectl apply` to `kubectl delete`.

use crate::{
    harness::{Lab, condition, image},
    support::eventually,
};

#[test]
fn applied_it_streams_and_deleted_it_leaves_nothing() {
    let lab = Lab::new();
    lab.sql(
        "CREATE TABLE users (id bigint PRIMARY KEY, name text);
         INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 1000) n",
    );
    let name = lab.streaming(&lab.mirror(&["users"]));
    lab.assert_table("users", "id, name", "id");
    lab.sql("UPDATE users SET name = 'renamed' WHERE id = 7; DELETE FROM users WHERE id = 8");
    lab.settle(&name);
    lab.assert_table("users", "id, name", "id");

    let pods = lab.replicators(&name);
    let [pod] = &pods[..] else { panic!("one pod, not {}", pods.len()) };
    assert_eq!(pod.spec.as_ref().unwrap().containers[0].image.as_deref(), Some(&*image()));
    let status = lab.until_ready(&name).status.unwrap();
    assert!(condition(&status.conditions, "Stalled").is_none());
    let slot =
        lab.source_value("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()");
    assert_eq!(status.slot_name.as_deref(), Some(&*slot));

    // what is left is looked at by Lab's end too, when all Mirrors are deleted
    lab.delete::<walferry::api::Mirror>(&name);
    assert_eq!(lab.left_at_source(), "");
    eventually("the end of the replicator", || lab.replicators(&name).is_empty());
    lab.assert_table("users", "id, name", "id");
}
