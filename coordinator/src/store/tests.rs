//! The store suite: what every database must do.

use mesh_proto::key::{MachinePrivateKey, NodePrivateKey, Purpose};

use super::*;

async fn open(dir: &Path) -> (Store, MeshRecord) {
    open_at(dir, 0).await
}

async fn open_at(dir: &Path, now_ms: u64) -> (Store, MeshRecord) {
    let store = Store::open_sqlite(&dir.join("test.db")).await.unwrap();
    let network = NetworkId::from_bytes([1; 16]);
    let mesh = store
        .open_mesh(network, "10.77.0.0/22".parse().unwrap(), now_ms)
        .await
        .unwrap();
    (store, mesh)
}

async fn insert_key(store: &Store, n: u8, is_reusable: bool, expires_at_ms: u64) {
    let key = NewAuthKeyRecord {
        prefix: format!("key{n}"),
        hash: [n; 32],
        user: None,
        is_reusable,
        is_ephemeral: false,
        tags: vec![],
        created_at_ms: 1,
        expires_at_ms,
    };
    store.insert_auth_key(&key).await.unwrap();
}

fn asked(n: u16, key: Option<u8>) -> Registration {
    let mut seed = [9; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    let machine = MachinePrivateKey::from_bytes(&seed);
    let node_key = NodePrivateKey::from_bytes(seed).public();
    Registration {
        machine_key: machine.public(),
        node_key,
        node_key_signature: machine.sign(Purpose::NodeKey, node_key.as_bytes()),
        hostname: "host".to_owned(),
        os: "linux".to_owned(),
        version: "0.1.0".to_owned(),
        auth_key: key.map(|key| (format!("key{key}"), [key; 32])),
        now_ms: 100,
        expires_at_ms: Some(1000),
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> JoinRefusal {
    match result {
        Err(StoreError::Refused(why)) => why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn the_epoch_rises_with_each_start() {
    let dir = tempfile::tempdir().unwrap();
    let (store, first) = open(dir.path()).await;
    assert_eq!((first.epoch, first.is_new), (1, true));
    drop(store);
    let (_, second) = open(dir.path()).await;
    assert_eq!(
        (second.epoch, second.is_new, second.ipv4_pool),
        (2, false, first.ipv4_pool)
    );
}

#[tokio::test]
async fn the_epoch_is_the_time_of_the_start_also_after_a_backup_was_restored() {
    use sqlx::{ConnectOptions as _, Connection as _};

    let dir = tempfile::tempdir().unwrap();
    let restored = tempfile::tempdir().unwrap();
    assert_eq!(open_at(dir.path(), 5_000).await.1.epoch, 5_000);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("test.db"));
    let mut connection = options.connect().await.unwrap();
    sqlx::query("VACUUM INTO $1")
        .bind(restored.path().join("test.db").display().to_string())
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    for now_ms in [6_000, 7_000] {
        assert_eq!(open_at(dir.path(), now_ms).await.1.epoch, now_ms);
    }
    assert_eq!(open_at(restored.path(), 8_000).await.1.epoch, 8_000);
    // A clock that went back does not take the epoch with it.
    assert_eq!(open_at(restored.path(), 1_000).await.1.epoch, 8_001);
}

#[tokio::test]
async fn a_key_is_spent_with_the_join_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    store
        .insert_user(&"anna".parse().unwrap(), 1)
        .await
        .unwrap();
    insert_key(&store, 1, false, 1000).await;
    insert_key(&store, 2, true, 1000).await;
    insert_key(&store, 3, true, 100).await;
    let node = store.register(&asked(1, Some(1))).await.unwrap();
    assert_eq!(store.register(&asked(1, Some(1))).await.unwrap(), node);
    assert_eq!(
        refused(store.register(&asked(2, Some(1))).await),
        JoinRefusal::KeySpent
    );
    assert_eq!(
        refused(store.register(&asked(2, Some(3))).await),
        JoinRefusal::KeyExpired
    );
    assert_eq!(
        refused(store.register(&asked(2, None)).await),
        JoinRefusal::NotRegistered
    );
    let wrong = Registration {
        auth_key: Some(("key2".to_owned(), [7; 32])),
        ..asked(2, None)
    };
    assert_eq!(
        refused(store.register(&wrong).await),
        JoinRefusal::KeyUnknown
    );
    let copied = Registration {
        node_key: node.node_key,
        ..asked(2, Some(2))
    };
    assert_eq!(
        refused(store.register(&copied).await),
        JoinRefusal::NodeKeyTaken
    );
    store.revoke_auth_key("key2").await.unwrap();
    assert_eq!(
        refused(store.register(&asked(2, Some(2))).await),
        JoinRefusal::KeyRevoked
    );
    let uses: Vec<_> = store
        .list_auth_keys()
        .await
        .unwrap()
        .iter()
        .map(|key| key.n_uses)
        .collect();
    assert_eq!(uses, [1, 0, 0]);
}

#[tokio::test]
async fn an_expired_node_needs_a_new_key_and_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    store
        .insert_user(&"anna".parse().unwrap(), 1)
        .await
        .unwrap();
    insert_key(&store, 1, false, 1000).await;
    insert_key(&store, 2, false, 5000).await;
    let node = store.register(&asked(1, Some(1))).await.unwrap();
    let later = |key| Registration {
        now_ms: 2000,
        expires_at_ms: Some(9000),
        ..asked(1, key)
    };
    assert_eq!(
        refused(store.register(&later(None)).await),
        JoinRefusal::NodeExpired
    );
    let renewed = store.register(&later(Some(2))).await.unwrap();
    assert_eq!((renewed.ipv4, renewed.name), (node.ipv4, node.name));
    assert_eq!(renewed.expires_at_ms, Some(9000));
}

#[tokio::test]
async fn addresses_are_never_given_twice_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    store
        .insert_user(&"anna".parse().unwrap(), 1)
        .await
        .unwrap();
    insert_key(&store, 1, true, 1000).await;
    let mut seen = std::collections::BTreeSet::new();
    let mut n = 0;
    let end = loop {
        match store.register(&asked(n, Some(1))).await {
            Ok(node) => {
                assert!(seen.insert(node.ipv4));
                assert_eq!(
                    node.name.as_str(),
                    "host",
                    "the name of a deleted node is free"
                );
                store.delete_node(node.id).await.unwrap();
            }
            Err(err) => break err,
        }
        n += 1;
    };
    assert_eq!(
        (end, seen.len()),
        (StoreError::Refused(JoinRefusal::PoolExhausted), 3 * 254)
    );
}

#[tokio::test]
async fn names_are_unique_and_changes_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let anna = store
        .insert_user(&"anna".parse().unwrap(), 1)
        .await
        .unwrap();
    insert_key(&store, 1, true, 1000).await;
    let first = store.register(&asked(1, Some(1))).await.unwrap();
    let second = store.register(&asked(2, Some(1))).await.unwrap();
    assert_eq!(
        (first.name.as_str(), second.name.as_str()),
        ("host", "host-2")
    );
    let taken = store
        .change_node(second.id, &NodeChange::Name(first.name.clone()))
        .await;
    assert!(matches!(taken, Err(StoreError::Conflict(_))), "{taken:?}");
    let endpoints = vec!["192.0.2.1:1".parse().unwrap()];
    let told = NodeChange::Told {
        endpoints: Some(endpoints.clone()),
        offers: None,
    };
    store.change_node(second.id, &told).await.unwrap();
    let told = NodeChange::Told {
        endpoints: None,
        offers: Some(Arc::default()),
    };
    assert_eq!(
        store.change_node(second.id, &told).await.unwrap().endpoints,
        endpoints
    );
    let presence = PresenceRecord {
        id: first.id,
        last_seen_ms: Some(5),
        was_online: true,
    };
    store.keep_presence(&[presence]).await.unwrap();
    let nodes = store.list_nodes().await.unwrap();
    let kept = nodes.iter().find(|node| node.id == first.id).unwrap();
    assert_eq!((kept.last_seen_ms, kept.was_online), (Some(5), true));

    assert!(matches!(
        store.delete_user(&anna.name).await,
        Err(StoreError::Conflict(_))
    ));
    store.delete_node(first.id).await.unwrap();
    assert_eq!(
        store.delete_node(first.id).await,
        Err(StoreError::NotFound("node"))
    );
    store.delete_node(second.id).await.unwrap();
    assert_eq!(store.delete_user(&anna.name).await, Ok(anna.id));
    assert!(store.list_auth_keys().await.unwrap().is_empty());
    let next = store.insert_user(&anna.name, 1).await.unwrap();
    assert!(next.id > anna.id, "numbers of users are never given again");
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    drop(store);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("test.db"));
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
               VALUES (9999, 'later', 1, x'00', 0)";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    let err = Store::open_sqlite(&dir.path().join("test.db"))
        .await
        .unwrap_err();
    assert!(err.to_string().contains("newer version"), "{err}");
}

#[tokio::test]
async fn a_write_that_cannot_be_done_is_told_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("test.db"));
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    // A trigger that fails as a full disk would: with an error that is no constraint of ours.
    sqlx::query("ALTER TABLE users RENAME TO hidden")
        .execute(&mut connection)
        .await
        .unwrap();
    let name = "anna".parse().unwrap();
    assert!(matches!(
        store.insert_user(&name, 1).await,
        Err(StoreError::Unavailable(_))
    ));
    sqlx::query("ALTER TABLE hidden RENAME TO users")
        .execute(&mut connection)
        .await
        .unwrap();
    store.insert_user(&name, 1).await.unwrap();
}

#[tokio::test]
async fn wishes_expire() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let user = store
        .insert_user(&"anna".parse().unwrap(), 1)
        .await
        .unwrap()
        .id;
    store.put_want(user, "old", 100, 0).await.unwrap();
    store.put_want(user, "new", 200, 50).await.unwrap();
    let names = async |since| -> Vec<String> {
        let wanted = store.list_wanted(since).await.unwrap();
        wanted.into_iter().map(|wanted| wanted.model).collect()
    };
    assert_eq!(names(0).await, ["new", "old"]);
    assert_eq!(names(150).await, ["new"]);
    store.put_want(user, "new", 300, 150).await.unwrap();
    assert_eq!(names(0).await, ["new"], "what expired is deleted");
    store.delete_user(&"anna".parse().unwrap()).await.unwrap();
    assert!(names(0).await.is_empty(), "nobody is left who wants it");
}
