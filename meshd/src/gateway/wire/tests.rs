//! Replies cut at every place read the same; what could be read in two ways is refused.

use super::*;

/// Everything that comes of a reply when it is read in two pieces.
fn read(text: &str, cut: usize) -> Result<(u16, Vec<u8>, bool, usize), WireError> {
    let mut buffer = BytesMut::new();
    let mut pieces = [&text[..cut], &text[cut..]].into_iter();
    let mut head = None;
    let mut body = Vec::new();
    loop {
        if head.is_none() {
            head = Reply::take(&mut buffer)?;
        }
        if let Some(head) = &mut head {
            loop {
                match head.framing.step(&mut buffer)? {
                    Step::Data(bytes) => body.extend_from_slice(&bytes),
                    Step::More => break,
                    Step::End => {
                        let rest: usize = pieces.map(str::len).sum();
                        let rest = rest + buffer.len();
                        return Ok((head.status.as_u16(), body, head.is_kept, rest));
                    }
                }
            }
        }
        match pieces.next() {
            Some(piece) => buffer.extend_from_slice(piece.as_bytes()),
            // The connection ends here.
            None => {
                let head = head.ok_or(WireError::Head)?;
                return match head.framing {
                    Framing::Close => Ok((head.status.as_u16(), body, head.is_kept, 0)),
                    Framing::Length(_) | Framing::Chunked(_) => Err(WireError::Framing),
                };
            }
        }
    }
}

#[test]
fn a_reply_is_the_same_wherever_it_is_cut() {
    for (text, expected) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            (200, "hello", true, 0),
        ),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nConnection: Keep-Alive, Close\r\n\r\n",
            (404, "", false, 0),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nA: b\r\n\r\n",
            (200, "hello!", true, 0),
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            (204, "", true, 0),
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\nto the end",
            (200, "to the end", false, 0),
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            (200, "ok", false, 0),
        ),
        // Somebody sends more than was asked for.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1",
            (200, "ok", true, 8),
        ),
    ] {
        for cut in 0..=text.len() {
            let (status, body, is_kept, n_rest) = read(text, cut).unwrap();
            let body = String::from_utf8(body).unwrap();
            assert_eq!(
                (status, body.as_str(), is_kept, n_rest),
                expected,
                "{text:?} at {cut}"
            );
        }
    }
}

#[test]
fn a_reply_that_can_be_read_in_two_ways_is_refused() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ] {
        for cut in 0..=text.len() {
            assert!(read(text, cut).is_err(), "{text:?} at {cut}");
        }
    }
}

#[test]
fn a_head_or_a_line_without_end_is_given_up() {
    let mut endless = BytesMut::from("HTTP/1.1 200 OK\r\nA: ");
    endless.extend_from_slice("b".repeat(HEAD_MAX).as_bytes());
    assert_eq!(
        Reply::take(&mut endless).unwrap_err(),
        WireError::HeadTooLong
    );
    let mut endless = BytesMut::from("5;");
    endless.extend_from_slice("b".repeat(SIZE_LINE_MAX).as_bytes());
    assert_eq!(
        Framing::Chunked(Chunk::Size).step(&mut endless),
        Err(WireError::Chunk)
    );
    let mut framing = Framing::Chunked(Chunk::Trailers(0));
    let mut n_lines = 0;
    let given_up = loop {
        let mut trailers = BytesMut::from("A: b\r\n");
        n_lines += 1;
        if let Err(err) = framing.step(&mut trailers) {
            break err;
        }
        assert!(n_lines < HEAD_MAX);
    };
    assert_eq!(given_up, WireError::Chunk);
}
