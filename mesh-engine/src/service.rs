//! Service ports: how the service address and the door answer without any listener on a well-known port.

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One well-known port and the listener behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServicePort {
    /// TCP or UDP.
    pub transport: Transport,
    /// The port that clients use.
    pub port: u16,
    /// The port on the own overlay addresses where the listener is; each entry needs one of its own.
    pub hidden: u16,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePorts {
    /// On the service addresses, for this machine's own programs.
    pub local: Vec<ServicePort>,
    /// On the own overlay addresses, for peers.
    pub door: Vec<ServicePort>,
}
