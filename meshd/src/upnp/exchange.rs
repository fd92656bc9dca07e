//! One HTTP question to the gateway: a new connection, a short answer, no redirect.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_engine::UpnpOrder;
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::UpnpError;
use super::shape::{Action, Found, Place};

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const ANSWER_DEADLINE: Duration = Duration::from_secs(4);
/// The longest description in use has some 20 KB.
const ANSWER_LEN_MAX: usize = 64 << 10;
/// Gateways choose by it what they say of themselves (UPnP Device Architecture 1.1, section 2.1).
const AGENT: &str = concat!("Linux UPnP/1.1 meshd/", env!("CARGO_PKG_VERSION"));

pub(super) async fn get(
    order: &UpnpOrder,
    place: &Place,
) -> Result<(StatusCode, String), UpnpError> {
    let request = Request::builder().method(Method::GET);
    exchange(order, place, request, String::new()).await
}

pub(super) async fn post(
    order: &UpnpOrder,
    control: &Found,
    action: &Action,
) -> Result<(StatusCode, String), UpnpError> {
    let service = control.service.urn();
    let request = Request::builder()
        .method(Method::POST)
        .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
        .header("SOAPAction", format!("\"{service}#{}\"", action.name()));
    exchange(order, &control.place, request, action.body(service)).await
}

/// Aborts the connection's task when the exchange is over, however it ends.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn exchange(
    order: &UpnpOrder,
    place: &Place,
    request: http::request::Builder,
    body: String,
) -> Result<(StatusCode, String), UpnpError> {
    let failed = |err: &dyn std::error::Error| UpnpError::Http(err.to_string());
    let socket = TcpSocket::new_v4()?;
    socket.bind((order.client, 0).into())?;
    let connect = socket.connect((order.gateway, place.port).into());
    let stream = timeout(CONNECT_DEADLINE, connect)
        .await
        .map_err(|_| UpnpError::Silent)??;
    let request = request
        .uri(&place.path)
        .header(HOST, format!("{}:{}", order.gateway, place.port))
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|err| failed(&err))?;
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|err| failed(&err))?;
        // Its end shows at the answer.
        let _driver = Driver(tokio::spawn(async { drop(connection.await) }).abort_handle());
        let response = sender
            .send_request(request)
            .await
            .map_err(|err| failed(&err))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
            .collect()
            .await;
        let body = body.map_err(|err| UpnpError::Http(err.to_string()))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok((status, text))
    };
    timeout(ANSWER_DEADLINE, exchange)
        .await
        .map_err(|_| UpnpError::Silent)?
}
