//! STUN over UDP: tells nodes where their datagrams seem to come from, and answers nothing else.

use std::io;
use std::time::Duration;

use mesh_relay::stun_answer;
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
                    .and_then(|request| stun_answer(request, from))
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
