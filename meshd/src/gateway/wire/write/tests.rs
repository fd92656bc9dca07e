//! Replies as their callers see them.

use http::HeaderValue;
use http::header::CONTENT_TYPE;

use super::*;

const NEWEST: ReplyTo = ReplyTo {
    is_head: false,
    is_newest: true,
    is_kept: true,
};
const OLD: ReplyTo = ReplyTo {
    is_newest: false,
    ..NEWEST
};

/// Takes what waits, some bytes at a time.
fn taken(out: &mut Outbox, n_at_once: usize) -> Vec<u8> {
    let mut taken = Vec::new();
    while !out.is_empty() {
        let [head, tail] = out.unsent();
        let unsent = [&*head, &*tail].concat();
        let n = unsent.len().min(n_at_once);
        taken.extend_from_slice(&unsent[..n]);
        out.sent(n);
    }
    taken
}

fn without_date(text: &[u8]) -> String {
    let text = String::from_utf8(text.to_vec()).unwrap();
    let kept = text
        .split_inclusive("\r\n")
        .filter(|line| !line.starts_with("date: "));
    kept.collect()
}

#[test]
fn a_reply_tells_where_it_ends_to_each_caller() {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    // Nobody else says how a reply ends.
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("1"));
    let head = ReplyTo {
        is_head: true,
        ..NEWEST
    };
    let last = ReplyTo {
        is_kept: false,
        ..NEWEST
    };
    for (to, status, length, expected) in [
        (
            NEWEST,
            200,
            Some(5),
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-proxima-door: 1\r\ncontent-length: 5\r\n\r\nhello",
        ),
        (
            NEWEST,
            200,
            None,
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-proxima-door: 1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            last,
            404,
            Some(5),
            "HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\nx-proxima-door: 1\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
        ),
        (
            OLD,
            200,
            Some(5),
            "HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\nx-proxima-door: 1\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nhello",
        ),
        (
            OLD,
            200,
            None,
            "HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\nx-proxima-door: 1\r\nconnection: close\r\n\r\nhello",
        ),
        (
            head,
            200,
            Some(5),
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-proxima-door: 1\r\ncontent-length: 5\r\n\r\n",
        ),
        (
            head,
            200,
            None,
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-proxima-door: 1\r\n\r\n",
        ),
        (
            NEWEST,
            204,
            Some(0),
            "HTTP/1.1 204 No Content\r\ncontent-type: text/plain\r\nx-proxima-door: 1\r\n\r\n",
        ),
    ] {
        for n_at_once in [1, 7, 1_000] {
            let status = StatusCode::from_u16(status).unwrap();
            let extent = Extent::of(&to, status, length);
            let mut out = Outbox::default();
            let is_kept = out.begin(&to, status, &headers, extent);
            if !matches!(extent, Extent::None(_)) {
                out.put(Bytes::new(), extent);
                out.put(Bytes::from_static(b"hello"), extent);
                out.end(extent);
            }
            let text = without_date(&taken(&mut out, n_at_once));
            assert_eq!(text, expected, "{to:?} {status}");
            assert_eq!(is_kept, !expected.contains("connection: close"));
        }
    }
}

#[test]
fn long_data_goes_out_whole_and_in_order() {
    let long = |byte: u8| Bytes::from(vec![byte; COPIED_MAX + 1]);
    for extent in [Extent::Exact(u64::MAX), Extent::Close] {
        let mut out = Outbox::default();
        let mut seen = Vec::new();
        for (data, is_full) in [
            (Bytes::from_static(b"ab"), false),
            (long(b'c'), true),
            (long(b'd'), true),
        ] {
            out.put(data, extent);
            assert_eq!(out.is_full(), is_full);
            if is_full {
                seen.extend(taken(&mut out, 1_000));
            }
        }
        let expected = [&b"ab"[..], &long(b'c'), &long(b'd')].concat();
        assert_eq!(seen, expected, "{extent:?}");
    }
}

#[test]
fn the_room_of_a_long_reply_is_not_kept() {
    let mut out = Outbox::default();
    out.put(Bytes::from(vec![0; 4 * KEPT_MAX]), Extent::Chunked);
    assert!(out.is_full());
    taken(&mut out, usize::MAX);
    assert_eq!(out.head.capacity(), 0);
}

#[test]
fn a_date_is_told() {
    let mut date = Vec::new();
    with_date(|told| date.extend_from_slice(told));
    let date = String::from_utf8(date).unwrap();
    let told = httpdate::parse_http_date(&date).unwrap();
    assert!(
        SystemTime::now().duration_since(told).unwrap().as_secs() < 60,
        "{date}"
    );
}
