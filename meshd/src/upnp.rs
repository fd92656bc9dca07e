//! Port mappings by UPnP (Internet Gateway Device 1 and 2), where the gateway speaks neither PCP nor NAT-PMP.
//!
//! The engine orders, one task carries out, one order after the other. The gateway is anybody who sits at its address, and
//! what it says are bytes from outside: only what comes from that address is read, its control point must be at that
//! address too, no redirect is followed, and time and length of each answer are bounded.

mod exchange;
mod shape;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use http::StatusCode;
use mesh_engine::UpnpOrder;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use self::exchange::{get, post};
use self::shape::{Action, Found, Service, ShapeError};

/// Orders and answers that wait; the engine has one under way.
const N_ORDERS: usize = 4;
/// One order, all its questions together.
const ORDER_DEADLINE: Duration = Duration::from_secs(15);
/// Taking a mapping back at the end.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// How long a gateway may take to say where it is controlled; it is asked twice within that.
const SEARCH_FOR: Duration = Duration::from_secs(2);
const SEARCH_AGAIN: Duration = Duration::from_millis(700);
/// Answers to a search that are looked at, of anybody.
const N_ANSWERS_MAX: usize = 64;
const SSDP_PORT: u16 = 1900;
const SSDP_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// Outer ports that are tried beside the inner one where others have taken it.
const N_PORTS: usize = 4;
/// What is told to the engine of a mapping without an end: it is renewed all the same, should the gateway forget it.
const PERMANENT_S: u32 = 7200;

/// Why there is no mapping.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpnpError {
    /// The network failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// HTTP failed.
    #[error("{0}")]
    Http(String),
    /// Nobody at the gateway's address answers.
    #[error("no answer in time")]
    Silent,
    /// What it says is not understood, or not to be followed.
    #[error("{0}")]
    Shape(#[from] ShapeError),
    /// It says no.
    #[error("refused: HTTP {status}, UPnP error {code:?}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error code of the UPnP device, if it gave one.
        code: Option<u32>,
    },
}

impl UpnpError {
    const fn code(&self) -> Option<u32> {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Io(_) | Self::Http(_) | Self::Silent | Self::Shape(_) => None,
        }
    }
}

/// An order and what became of it: where the gateway forwards from, for how many seconds.
pub(crate) type Done = (UpnpOrder, Option<(SocketAddr, u32)>);

/// The task that carries out orders.
#[derive(Debug)]
pub(crate) struct Upnp {
    orders: mpsc::Sender<UpnpOrder>,
    done: mpsc::Receiver<Done>,
    task: JoinHandle<()>,
}

impl Upnp {
    pub(crate) fn start() -> Self {
        let (orders, orders_rx) = mpsc::channel(N_ORDERS);
        let (done_tx, done) = mpsc::channel(N_ORDERS);
        let task = tokio::spawn(carry_out(orders_rx, done_tx));
        Self { orders, done, task }
    }

    /// Has an order carried out.
    pub(crate) fn order(&self, order: UpnpOrder) {
        if self.orders.try_send(order).is_err() {
            tracing::debug!("the gateway has enough to do");
        }
    }

    /// What became of an order.
    pub(crate) async fn done(&mut self) -> Done {
        match self.done.recv().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    /// Ends the task when what was ordered is done, or after a moment.
    pub(crate) async fn stop(self) {
        let Self {
            orders,
            done,
            mut task,
        } = self;
        drop((orders, done));
        if timeout(END_DEADLINE, &mut task).await.is_err() {
            task.abort();
        }
    }
}

/// What is known of a gateway that mapped.
struct Known {
    order: UpnpOrder,
    control: Found,
    outer_port: u16,
}

async fn carry_out(mut orders: mpsc::Receiver<UpnpOrder>, done: mpsc::Sender<Done>) {
    let mut known: Option<Known> = None;
    while let Some(order) = orders.recv().await {
        let mapping = timeout(ORDER_DEADLINE, carry_out_one(order, &mut known));
        let mapped = match mapping.await {
            Ok(Ok(mapped)) => mapped,
            Ok(Err(err)) => {
                tracing::debug!(%err, "the gateway maps no port by UPnP");
                None
            }
            Err(_) => None,
        };
        if order.lifetime_s != 0 {
            // Nobody waits for it once the overlay goes down.
            let _ = done.send((order, mapped)).await;
        }
    }
}

async fn carry_out_one(
    order: UpnpOrder,
    known: &mut Option<Known>,
) -> Result<Option<(SocketAddr, u32)>, UpnpError> {
    let before = known.take_if(|known| {
        (known.order.gateway, known.order.client, known.order.port)
            == (order.gateway, order.client, order.port)
    });
    if order.lifetime_s == 0 {
        if let Some(before) = before {
            let action = Action::Delete {
                outer_port: before.outer_port,
            };
            ask(&order, &before.control, &action).await?;
        }
        return Ok(None);
    }
    if let Some(before) = before {
        let (control, port) = (before.control, before.outer_port);
        if let Ok(mapped) = map(&order, &control, Some(port)).await {
            return Ok(Some(keep(known, order, control, mapped)));
        }
    }
    let description = search(&order).await?;
    let (control, mapped) = map_by(&order, &description).await?;
    Ok(Some(keep(known, order, control, mapped)))
}

fn keep(
    known: &mut Option<Known>,
    order: UpnpOrder,
    control: Found,
    mapped: (SocketAddr, u32),
) -> (SocketAddr, u32) {
    let outer_port = mapped.0.port();
    *known = Some(Known {
        order,
        control,
        outer_port,
    });
    mapped
}

/// Asks the gateway where its description is (UPnP Device Architecture 1.1, section 1.3). It is asked itself and by
/// multicast: some answer only one of them, and a firewall of this machine may let in only answers to the former.
async fn search(order: &UpnpOrder) -> Result<shape::Place, UpnpError> {
    let socket = UdpSocket::bind((order.client, 0)).await?;
    let end = Instant::now() + SEARCH_FOR;
    let mut ask_at = Instant::now();
    let mut n_answers = 0;
    let mut answer = [0; 2048];
    loop {
        if Instant::now() >= ask_at {
            ask_at += SEARCH_AGAIN;
            for question in shape::searches() {
                for to in [order.gateway, SSDP_GROUP] {
                    // Where one way is barred the other may be open.
                    let _ = socket.send_to(question.as_bytes(), (to, SSDP_PORT)).await;
                }
            }
        }
        let Ok(received) = timeout_at(ask_at.min(end), socket.recv_from(&mut answer)).await else {
            if Instant::now() >= end {
                return Err(UpnpError::Silent);
            }
            continue;
        };
        // An error is of a question before, such as that nobody listens there.
        let Ok((len, from)) = received else { continue };
        n_answers += 1;
        if n_answers > N_ANSWERS_MAX {
            return Err(UpnpError::Silent);
        }
        let bytes = answer.get(..len).unwrap_or_default();
        if from.ip() == IpAddr::V4(order.gateway)
            && let Some(place) = shape::description_at(bytes, order.gateway)
        {
            return Ok(place);
        }
    }
}

/// Reads a description and maps at the first of its services that does.
async fn map_by(
    order: &UpnpOrder,
    description: &shape::Place,
) -> Result<(Found, (SocketAddr, u32)), UpnpError> {
    let (status, body) = get(order, description).await?;
    if status != StatusCode::OK {
        return Err(refusal(status, &body));
    }
    let mut error = UpnpError::Shape(ShapeError::NoService);
    for control in shape::services(&body, description, order.gateway)? {
        match map(order, &control, None).await {
            Ok(mapped) => return Ok((control, mapped)),
            Err(err) => error = err,
        }
    }
    Err(error)
}

/// Maps the port, by the same outer one if it has one already.
async fn map(
    order: &UpnpOrder,
    control: &Found,
    outer_port: Option<u16>,
) -> Result<(SocketAddr, u32), UpnpError> {
    let answer = ask(order, control, &Action::Address).await?;
    let outer_ip = shape::address(&answer)?;
    let outer = |port| SocketAddr::V4(SocketAddrV4::new(outer_ip, port));
    let (client, port) = (order.client, order.port);
    let mut lifetime_s = order.lifetime_s;
    if control.service == Service::Ip2 && outer_port.is_none() {
        let action = Action::AddAny {
            client,
            port,
            lifetime_s,
        };
        if let Ok(answer) = ask(order, control, &action).await {
            return Ok((outer(shape::reserved_port(&answer)?), lifetime_s));
        }
    }
    let mut outer_port = outer_port.unwrap_or(port);
    for _ in 0..N_PORTS {
        let action = |lifetime_s| Action::Add {
            client,
            port,
            outer_port,
            lifetime_s,
        };
        let mut added = ask(order, control, &action(lifetime_s)).await;
        if added
            .as_ref()
            .is_err_and(|err| err.code() == Some(shape::ONLY_PERMANENT))
        {
            added = ask(order, control, &action(0)).await;
            lifetime_s = PERMANENT_S;
        }
        match added {
            Ok(_) => return Ok((outer(outer_port), lifetime_s)),
            Err(err) if err.code() == Some(shape::CONFLICT) => outer_port = any_port()?,
            Err(err) => return Err(err),
        }
    }
    Err(UpnpError::Shape(ShapeError::NoPort))
}

/// A port that no well-known service has.
fn any_port() -> Result<u16, UpnpError> {
    let random = getrandom::u32().map_err(std::io::Error::from)?;
    let port = 1024 + random % (65_536 - 1024);
    Ok(u16::try_from(port).unwrap_or(u16::MAX))
}

async fn ask(order: &UpnpOrder, control: &Found, action: &Action) -> Result<String, UpnpError> {
    let (status, body) = post(order, control, action).await?;
    if status == StatusCode::OK {
        Ok(body)
    } else {
        Err(refusal(status, &body))
    }
}

fn refusal(status: StatusCode, body: &str) -> UpnpError {
    UpnpError::Refused {
        status: status.as_u16(),
        code: shape::error_code(body),
    }
}

#[cfg(test)]
mod tests;
