//! Who may do what on the control socket. Pure: takes uids and headers, returns verdicts.

use http::header::{HOST, ORIGIN, REFERER};
use http::{HeaderMap, Method};
use mesh_proto::control::code;

use super::LocalError;

const ROOT_UID: u32 = 0;

/// Who is at the other end, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) own_uid: u32,
}

impl Caller {
    /// Root and the daemon's own user need nobody's leave.
    pub(super) const fn is_owner(self) -> bool {
        self.uid == ROOT_UID || self.uid == self.own_uid
    }

    /// Whether the caller may change things.
    pub(super) fn may_write(self, operator_uid: Option<u32>) -> bool {
        self.is_owner() || operator_uid == Some(self.uid)
    }
}

/// Refuses a caller that may read only.
pub(super) fn refuse_write(caller: Caller) -> LocalError {
    LocalError::new(
        code::FORBIDDEN,
        format!(
            "the user with uid {} may look but not change anything: use sudo, or let an administrator run \
             `meshctl set operator={}` once",
            caller.uid, caller.uid
        ),
    )
}

/// Whether a method changes anything.
pub(super) fn is_read(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

/// Refuses what a web page could have sent through some proxy to the socket: `meshctl` sends neither an origin nor a
/// foreign host.
pub(super) fn check_headers(headers: &HeaderMap) -> Result<(), LocalError> {
    for name in [ORIGIN, REFERER] {
        if headers.contains_key(&name) {
            return Err(LocalError::new(
                code::FORBIDDEN,
                format!("the control socket takes no requests from web pages (`{name}` header)"),
            ));
        }
    }
    let mut hosts = headers.get_all(HOST).into_iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Ok(()),
        (Some(host), None) if host.is_empty() || host == "localhost" => Ok(()),
        (Some(_), _) => Err(LocalError::new(
            code::FORBIDDEN,
            "the control socket answers to the host `localhost` only",
        )),
    }
}
