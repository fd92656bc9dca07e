//! STUN over UDP: tells nodes where their datagrams seem to come from, and answers nothing else.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::stun::{binding_success, parse_request};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::metrics;

/// No binding request of ours is longer; a longer one is not answered, so answers stay about as small as requests.
const REQUEST_LEN_MAX: usize = 512;

/// Answers on one socket until told to stop.
pub(crate) async fn serve(socket: UdpSocket, stop: CancellationToken) {
    let mut datagram = [0; REQUEST_LEN_MAX + 1];
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut datagram) => received,
        };
        match received {
            Ok((len, from)) => {
                if let Some(answer) = datagram
                    .get(..len)
                    .and_then(|request| answer(request, from))
                {
                    // Sending never waits: a full socket buffer drops the answer, and the node asks again.
                    drop(socket.try_send_to(&answer, from));
                    metrics::stun_answer();
                }
            }
            // A datagram that an earlier peer bounced is reported here too; the socket itself goes on.
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(err) => {
                tracing::debug!(%err, "cannot receive STUN requests");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn answer(datagram: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    if datagram.len() > REQUEST_LEN_MAX {
        return None;
    }
    let id = parse_request(datagram)?;
    Some(binding_success(
        &id,
        SocketAddr::new(from.ip().to_canonical(), from.port()),
    ))
}

#[cfg(test)]
mod tests {
    use mesh_proto::stun::{binding_request, parse_success};

    use super::*;

    #[test]
    fn answers_requests_and_nothing_else() {
        let from: SocketAddr = "[::ffff:192.0.2.7]:4000".parse().unwrap();
        let request = binding_request(&[9; 12]);
        let reply = answer(&request, from).unwrap();
        assert_eq!(
            parse_success(&reply),
            Some(([9; 12], "192.0.2.7:4000".parse().unwrap()))
        );
        assert!(reply.len() <= 2 * request.len());
        assert_eq!(answer(&reply, from), None);
        assert_eq!(answer(b"hello", from), None);
        assert_eq!(answer(&[0; REQUEST_LEN_MAX + 1], from), None);
    }
}
