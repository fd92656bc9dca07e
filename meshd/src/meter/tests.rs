//! Records and sums across restarts, torn lines and disks that take nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use mesh_proto::door::Limit;
use mesh_proto::id::{NetworkId, NodeId, UserId};
use mesh_proto::key::NodeKey;
use mesh_proto::share::Digest;
use mesh_proto::usage::{Endpoint, Outcome, Party, Random16, USAGE_VERSION};

use super::*;

const DAY_MS: u64 = 24 * 3_600 * 1_000;

fn party(n: u8, name: &str) -> Party {
    Party {
        node: NodeId::from_bytes([n; 10]),
        node_key: NodeKey::from_bytes([n; 32]),
        owner: UserId(i64::from(n)),
        owner_name: name.parse().unwrap(),
        is_tagged: false,
    }
}

fn record(n: u8, model: &str, end_ms: u64) -> UsageRecord {
    UsageRecord {
        version: USAGE_VERSION,
        network_id: NetworkId::from_bytes([5; 16]),
        rid: Random16::from_bytes([n; 16]),
        nonce: Random16::from_bytes([0; 16]),
        client: party(n, "anna"),
        host: party(1, "olga"),
        model: model.to_owned(),
        digest: None,
        endpoint: Endpoint::Chat,
        prompt_tokens: Some(20),
        output_tokens: Some(10),
        delivered_tokens: 10,
        n_chunks: 10,
        n_bytes: 900,
        start_ms: end_ms - 100,
        first_byte_ms: Some(end_ms - 90),
        end_ms,
        outcome: Outcome::Ok,
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn put(spool: &mut Spool, n: usize) -> io::Result<()> {
    let mut lines = Lines::default();
    for _ in 0..n {
        lines.push(&record(2, "tiny", 3 * DAY_MS))?;
    }
    spool.append(lines.take().iter().map(Block::text))
}

async fn until(meter: &Meter, n_requests: u64) {
    let all = || {
        meter
            .report(400)
            .rows
            .iter()
            .map(|row| row.sum.n_requests)
            .sum::<u64>()
    };
    let counted = async {
        while all() != n_requests {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted)
        .await
        .expect("in time");
}

#[tokio::test]
async fn usage_survives_a_restart_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let now = now_ms();
    let meter = Meter::start(dir.path());
    for (n, model) in [(2, "tiny"), (2, "tiny"), (1, "tiny"), (2, "other")] {
        meter.inbox().take(&record(n, model, now));
    }
    until(&meter, 4).await;
    let before = meter.report(1);
    meter.stop().await;
    let rows: Vec<_> = before
        .rows
        .iter()
        .map(|row| (row.is_owner, row.model.as_str(), row.sum.n_requests))
        .collect();
    assert_eq!(
        rows,
        [(true, "tiny", 1), (false, "other", 1), (false, "tiny", 2)]
    );
    assert_eq!(before.rows[2].sum.prompt_tokens, 40);

    let meter = Meter::start(dir.path());
    assert_eq!(meter.report(1).rows, before.rows);
    meter.inbox().take(&record(2, "tiny", now));
    until(&meter, 5).await;
    // What was used today still counts against the limits.
    let limit = Limit {
        who: mesh_proto::door::Guests::All,
        models: "*".to_owned(),
        concurrent: None,
        per_minute: None,
        tokens_per_day: Some(90),
    };
    let bound = crate::gateway::Bound {
        limit: &limit,
        account: None,
    };
    let asked = meter.spending().admit(
        Account::User(UserId(2)),
        "tiny",
        &[bound],
        1,
        1,
        SystemTime::now(),
    );
    assert!(asked.is_err(), "the 90 tokens of before the restart");
    meter.stop().await;
}

#[tokio::test]
async fn sums_that_are_lost_are_made_again_from_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let meter = Meter::start(dir.path());
    for _ in 0..3 {
        meter.inbox().take(&record(2, "tiny", now_ms()));
    }
    until(&meter, 3).await;
    let before = meter.report(2).rows;
    meter.stop().await;
    for text in [None, Some("no JSON")] {
        let totals = dir.path().join("usage/totals.json");
        match text {
            None => fs::remove_file(totals).unwrap(),
            Some(text) => fs::write(totals, text).unwrap(),
        }
        let meter = Meter::start(dir.path());
        assert_eq!(meter.report(2).rows, before);
        meter.inbox().take(&record(2, "tiny", now_ms()));
        until(&meter, 4).await;
        meter.stop().await;
        let segment = dir.path().join("usage/00000001.jsonl");
        let lines = fs::read_to_string(&segment).unwrap();
        let three: Vec<&str> = lines.split_inclusive('\n').take(1 + 3).collect();
        fs::write(segment, three.concat()).unwrap();
    }
}

#[test]
fn a_torn_line_is_cut_off_and_hides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::at(dir.path());
    put(&mut spool, 2).unwrap();
    let segment = dir.path().join("00000001.jsonl");
    let mut text = fs::read(&segment).unwrap();
    let whole = text.len();
    text.extend_from_slice(b"{\"version\":1,\"netw");
    fs::write(&segment, text).unwrap();
    let mut spool = Spool::at(dir.path());
    let mut n = 0;
    spool.replay(Default::default(), |_| n += 1).unwrap();
    assert_eq!(n, 2);
    put(&mut spool, 1).unwrap();
    let text = fs::read_to_string(&segment).unwrap();
    assert!(text[whole..].starts_with("{\"of\":0,\"subject\""), "{text}");
    let mut n = 0;
    Spool::at(dir.path())
        .replay(Default::default(), |_| n += 1)
        .unwrap();
    assert_eq!(n, 3);
}

#[test]
fn a_burst_of_many_rows_is_read_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::at(dir.path());
    put(&mut spool, 600).unwrap();
    let end = spool.end();
    let mut n = 0;
    let mut again = Spool::at(dir.path());
    again.replay(Default::default(), |_| n += 1).unwrap();
    assert_eq!((n, again.end()), (600, end));
}

#[test]
fn records_of_more_subjects_than_have_numbers_are_read_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::at(dir.path());
    let mut written = Vec::new();
    for _ in 0..3 {
        let mut lines = Lines::default();
        for n in 0..200_u64 {
            // Twenty guests and four models, of whom some ask again at once.
            let guest = u8::try_from(if n % 3 == 0 { 2 } else { n * 7 % 20 }).unwrap();
            let mut record = record(guest, &format!("m{}", n / 3 % 4), DAY_MS + 100 + n);
            record.rid = Random16::from_bytes([guest; 16]);
            record.prompt_tokens = (n % 2 == 0).then_some(n);
            record.digest = (n % 5 == 0).then(|| Digest::from_bytes([guest; 32]));
            lines.push(&record).unwrap();
            written.push(record);
        }
        assert_eq!(lines.n_records(), 200);
        let blocks = lines.take();
        assert!(blocks.len() > 1, "more than a block each time");
        spool.append(blocks.iter().map(Block::text)).unwrap();
    }
    let mut read = Vec::new();
    Spool::at(dir.path())
        .replay(Default::default(), |record| read.push(record))
        .unwrap();
    assert_eq!(read, written);
}

#[test]
fn a_damaged_line_puts_no_record_on_anothers_account() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = Lines::default();
    for guest in [2, 3, 2, 3] {
        lines.push(&record(guest, "tiny", DAY_MS + 100)).unwrap();
    }
    let blocks = lines.take();
    let text = std::str::from_utf8(blocks[0].text()).unwrap();
    let n_lines = text.lines().count();
    assert_eq!(n_lines, 2 + 4);
    for damaged in 0..n_lines {
        let mut torn: Vec<_> = text.lines().map(str::to_owned).collect();
        torn[damaged] = "x".repeat(20_000);
        let segment = dir.path().join("00000001.jsonl");
        fs::write(segment, torn.join("\n") + "\n").unwrap();
        let mut n_of = [0; 4];
        let mut each =
            |record: UsageRecord| n_of[usize::try_from(record.client.owner.0).unwrap()] += 1;
        Spool::at(dir.path())
            .replay(Default::default(), &mut each)
            .unwrap();
        let [_, _, second, third] = n_of;
        assert!(second <= 2 && third <= 2, "{damaged}: {n_of:?}");
        assert!(second + third < 4, "{damaged}: {n_of:?}");
    }
}

#[test]
fn the_oldest_segments_go_and_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("usage");
    let mut spool = Spool::with_segments_of(&root, 500);
    for _ in 0..100 {
        put(&mut spool, 2).unwrap();
    }
    let mut names: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect();
    names.sort_by_key(fs::DirEntry::file_name);
    assert_eq!(names.len(), 16);
    assert_eq!(names[15].file_name(), "00000100.jsonl");
    for entry in names {
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    assert_eq!(
        fs::metadata(&root).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let from = spool.end();
    let mut n = 0;
    let mut again = Spool::at(&root);
    again.replay(from, |_| n += 1).unwrap();
    assert_eq!(
        (n, again.end()),
        (0, from),
        "all before the place is read already"
    );
}

#[tokio::test]
async fn a_disk_that_takes_nothing_loses_nothing_and_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("usage");
    let meter = Meter::start(dir.path());
    meter.inbox().take(&record(2, "tiny", now_ms()));
    until(&meter, 1).await;
    // A record that came just now is no sign of a full disk.
    assert_eq!(meter.report(400).n_unwritten, 0);
    meter.stop().await;
    let before = fs::read_to_string(root.join("00000001.jsonl")).unwrap();

    let (totals, mut spool) = load(&root);
    // A folder in the place of the file refuses all writing, of root too.
    fs::rename(root.join("00000001.jsonl"), root.join("kept")).unwrap();
    fs::create_dir(root.join("00000001.jsonl")).unwrap();
    assert!(put(&mut spool, 1).is_err());
    let inbox = Inbox::with(totals);
    let mut writer = Writer::new(spool, &inbox);
    let n_waiting = || lock(&inbox.0.book).lines.n_records();
    for n in 1..=2 * N_UNWRITTEN_MAX {
        inbox.take(&record(2, "tiny", now_ms()));
        if n == 9 {
            writer.write(true).await;
            assert_eq!(n_waiting(), 9, "they wait");
            assert_eq!(lock(&inbox.0.book).n_unwritten(), 9);
        }
    }
    writer.write(true).await;
    // The oldest are lost by the block.
    let n_left = n_waiting();
    assert!(
        n_left <= N_UNWRITTEN_MAX && n_left > N_UNWRITTEN_MAX - 100,
        "within bounds: {n_left}"
    );
    assert_eq!(lock(&inbox.0.book).n_unwritten(), n_left);
    fs::remove_dir(root.join("00000001.jsonl")).unwrap();
    fs::rename(root.join("kept"), root.join("00000001.jsonl")).unwrap();
    writer.write(true).await;
    assert_eq!(n_waiting(), 0);
    assert_eq!(lock(&inbox.0.book).n_unwritten(), 0);
    assert!(!lock(&inbox.0.book).is_failing);
    let after = fs::read_to_string(root.join("00000001.jsonl")).unwrap();
    assert!(after.starts_with(&before));
    let mut n = 0;
    Spool::at(&root)
        .replay(Default::default(), |_| n += 1)
        .unwrap();
    assert_eq!(n, 1 + n_left);
}

#[test]
fn sums_have_bounds() {
    let mut totals = Totals::default();
    for day in 0..500_u64 {
        totals.count(&record(2, "tiny", day * DAY_MS + 200));
    }
    assert_eq!(totals.rows(0).len(), 400);
    for n in 0..25_000 {
        totals.count(&record(2, &format!("m{n}"), 500 * DAY_MS + 200));
    }
    assert_eq!(totals.rows(0).len(), 20_000);
    assert_eq!(totals.rows(500)[0].day, "1971-05-16");
}

#[test]
fn a_row_grows_under_the_newest_name_of_its_guest() {
    let mut totals = Totals::default();
    let mut renamed = record(2, "tiny", DAY_MS);
    totals.count(&renamed);
    renamed.client = party(2, "berta");
    totals.count(&renamed);
    totals.count(&record(3, "tiny", DAY_MS));
    totals.count(&renamed);
    let rows = totals.rows(0);
    let told: Vec<_> = rows
        .iter()
        .map(|row| (row.guest.as_str(), row.sum.n_requests))
        .collect();
    assert_eq!(told, [("berta", 3), ("anna", 1)]);
}

#[test]
fn a_tagged_guest_is_counted_as_itself() {
    let mut tagged = record(1, "tiny", DAY_MS);
    tagged.client.is_tagged = true;
    tagged.client.node = NodeId::from_bytes([7; 10]);
    assert_eq!(
        account(&tagged),
        Account::Tagged(NodeId::from_bytes([7; 10]))
    );
    assert_eq!(account(&record(1, "tiny", DAY_MS)), Account::Owner);
    assert_eq!(
        account(&record(2, "tiny", DAY_MS)),
        Account::User(UserId(2))
    );
}
