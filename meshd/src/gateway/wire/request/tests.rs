//! Requests cut at every place read the same; what could be read in two ways is refused.

use proptest::prelude::*;

use super::*;
use crate::gateway::wire::{SIZE_LINE_MAX, Step};

/// A request's head, its body, and what is behind it.
type Whole = (Head, Vec<u8>, Vec<u8>);

/// What is read of a request that comes in two pieces.
fn read(text: &[u8], cut: usize) -> Result<Option<Whole>, WireError> {
    let (first, second) = text.split_at(cut);
    let mut buffer = BytesMut::from(first);
    let mut head = take_request(&mut buffer)?;
    let mut body = Vec::new();
    let mut is_over = false;
    for piece in [&b""[..], second] {
        buffer.extend_from_slice(piece);
        if head.is_none() {
            head = take_request(&mut buffer)?;
        }
        let Some(head) = &mut head else { continue };
        loop {
            match head.framing.step(&mut buffer)? {
                Step::Data(data) => body.extend_from_slice(&data),
                Step::More => break,
                Step::End => {
                    is_over = true;
                    break;
                }
            }
        }
    }
    Ok(head
        .filter(|_| is_over)
        .map(|head| (head, body, buffer.to_vec())))
}

#[test]
fn a_request_is_the_same_wherever_it_is_cut() {
    for (text, path, body, rest, is_kept) in [
        (
            "GET /api/tags HTTP/1.1\r\nHost: a\r\n\r\n",
            "/api/tags",
            "",
            "",
            true,
        ),
        (
            "\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n",
            "/",
            "",
            "",
            false,
        ),
        ("GET / HTTP/1.0\r\n\r\n", "/", "", "", false),
        (
            "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
            "/",
            "",
            "",
            true,
        ),
        (
            "POST /api/chat?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhelloGET",
            "/api/chat",
            "hello",
            "GET",
            true,
        ),
        (
            "POST http://a.example/api/chat#x HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n1;a=b\r\n!\r\n0\r\nA: b\r\n\r\n",
            "/api/chat",
            "hello!",
            "",
            true,
        ),
        ("OPTIONS * HTTP/1.1\r\n\r\n", "", "", "", true),
        ("CONNECT a:80 HTTP/1.1\r\n\r\n", "", "", "", false),
        (
            "GET /a//../%2f\\b;c HTTP/1.1\r\n\r\n",
            "/a//../%2f\\b;c",
            "",
            "",
            true,
        ),
    ] {
        for cut in 0..=text.len() {
            let (head, data, behind) = read(text.as_bytes(), cut).unwrap().unwrap();
            let seen = (
                head.path.as_str(),
                data.as_slice(),
                behind.as_slice(),
                head.is_kept,
            );
            assert_eq!(
                seen,
                (path, body.as_bytes(), rest.as_bytes(), is_kept),
                "{text:?} at {cut}"
            );
        }
    }
}

#[test]
fn a_request_that_can_be_read_in_two_ways_is_refused() {
    for rest in [
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "Content-Length: +5\r\n\r\nhello",
        "Content-Length: 5, 5\r\n\r\nhello",
        "Content-Length: \r\n\r\n",
        "Content-Length: 18446744073709551616\r\n\r\n",
        "Content-Length : 5\r\n\r\nhello",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
        "A: b\r\n Content-Length: 5\r\n\r\nhello",
        "A: b\rc\r\n\r\n",
        "A: b\0\r\n\r\n",
        "Host: b\r\n\r\n",
        "Origin: http://a\r\nOrigin: http://b\r\n\r\n",
        "Origin: http://\u{fc}\r\n\r\n",
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{rest}");
        for cut in 0..=text.len() {
            let read = read(text.as_bytes(), cut);
            assert!(read.is_err(), "{text:?} at {cut}: {read:?}");
        }
    }
    for text in [
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET /\r\n\r\n",
        "G(T / HTTP/1.1\r\n\r\n",
        "GET a HTTP/1.1 x\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03",
    ] {
        assert!(read(text.as_bytes(), text.len()).is_err(), "{text:?}");
    }
}

#[test]
fn a_head_has_bounds() {
    let head = |n: usize| {
        let text = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(n));
        take_request(&mut BytesMut::from(text.as_str()))
    };
    assert!(head(HEAD_MAX - 100).unwrap().is_some());
    assert_eq!(head(HEAD_MAX).unwrap_err(), WireError::HeadTooLong);
    let endless = format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(HEAD_MAX));
    let mut endless = BytesMut::from(endless.as_str());
    assert_eq!(
        take_request(&mut endless).unwrap_err(),
        WireError::HeadTooLong
    );
    let many = format!(
        "GET / HTTP/1.1\r\n{}\r\n",
        "A: b\r\n".repeat(N_HEADERS_MAX + 1)
    );
    let mut many = BytesMut::from(many.as_str());
    assert_eq!(take_request(&mut many).unwrap_err(), WireError::HeadTooLong);
    let mut size = BytesMut::from("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;");
    let mut head = take_request(&mut size).unwrap().unwrap();
    size.extend_from_slice("b".repeat(SIZE_LINE_MAX).as_bytes());
    assert_eq!(head.framing.step(&mut size), Err(WireError::Chunk));
}

#[test]
fn what_those_who_answer_ask_for_is_read() {
    let text = "POST / HTTP/1.1\r\nHOST: A.example:80\r\norigin: http://b\r\nContent-Encoding: gzip\r\nX-Proxima-Prefer: near\r\nExpect: 100-Continue\r\ncontent-length: 7\r\nAuthorization: Bearer x\r\n\r\n";
    let head = take_request(&mut BytesMut::from(text)).unwrap().unwrap();
    let fields = &head.fields;
    assert_eq!(fields.host.as_deref(), Some("A.example:80"));
    assert_eq!(fields.origin.as_deref(), Some("http://b"));
    assert_eq!(fields.content_encoding.as_deref(), Some("gzip"));
    assert_eq!(fields.prefer.as_deref(), Some("near"));
    assert_eq!(
        (fields.content_length, head.awaits_continue),
        (Some(7), true)
    );
    let old = text.replace("HTTP/1.1", "HTTP/1.0");
    let head = take_request(&mut BytesMut::from(old.as_str()))
        .unwrap()
        .unwrap();
    assert!(!head.awaits_continue, "HTTP/1.0 knows no such answer");
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), cut in 0_usize..600) {
        let _ = read(&bytes, cut.min(bytes.len()));
    }

    #[test]
    fn where_a_request_is_cut_changes_nothing(
        lines in proptest::collection::vec("[A-Za-z-]{1,12}: ?[ -~]{0,12}|Content-Length: [0-9]{1,2}|Transfer-Encoding: chunked|[ -~]{0,9}", 0..5),
        body in "[0-9a-f]?\r\n[a-z]{0,20}(\r\n0\r\n\r\n)?",
        cut in 0_usize..200,
    ) {
        let text = format!("POST / HTTP/1.1\r\n{}\r\n\r\n{body}", lines.join("\r\n"));
        let whole = read(text.as_bytes(), 0);
        let cut = read(text.as_bytes(), cut.min(text.len()));
        let seen = |read: Result<Option<Whole>, WireError>| {
            read.map(|read| read.map(|(head, body, rest)| (head.path, head.framing, body, rest)))
        };
        prop_assert_eq!(seen(whole), seen(cut));
    }
}
