//! Opening a TUN on Linux: the ioctls, and the way down to less offload on kernels that have less.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_char, c_int, c_short, c_uint, ifreq};

use super::{Tun, TunConfig, TunQueue};
use crate::TunCapabilities;
use crate::offload::VIRTIO_HEADER_LEN;
use crate::wait::check;

const TCP_OFFLOAD: c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const UDP_OFFLOAD: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

pub(super) fn open(config: &TunConfig) -> io::Result<Tun> {
    if config.n_queues == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a TUN needs at least one queue",
        ));
    }
    let is_multi_queue = config.n_queues > 1;
    let (first, name, has_header) = if config.wants_offload {
        match open_queue(&config.name, is_multi_queue, true) {
            // The driver knows the flags, but not together or not at all.
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
                let (file, name) = open_queue(&config.name, is_multi_queue, false)?;
                (file, name, false)
            }
            opened => {
                let (file, name) = opened?;
                (file, name, true)
            }
        }
    } else {
        let (file, name) = open_queue(&config.name, is_multi_queue, false)?;
        (file, name, false)
    };
    let capabilities = if has_header {
        set_offload(&first)?
    } else {
        TunCapabilities::default()
    };
    let mut queues = vec![TunQueue {
        file: first,
        has_header,
    }];
    for _ in 1..config.n_queues {
        let (file, _) = open_queue(&name, is_multi_queue, has_header)?;
        if has_header {
            set_offload(&file)?;
        }
        queues.push(TunQueue { file, has_header });
    }
    bring_up(&name, config.mtu)?;
    Ok(Tun {
        name,
        capabilities,
        queues,
    })
}

fn open_queue(name: &str, is_multi_queue: bool, has_header: bool) -> io::Result<(File, String)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
    if is_multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if has_header {
        flags |= libc::IFF_VNET_HDR;
    }
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = short(flags);
    // SAFETY: TUNSETIFF reads and writes one ifreq, and `request` is one.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok((file, name_of(&request)))
}

/// Sets the header's length and as much offload as the kernel takes.
fn set_offload(file: &File) -> io::Result<TunCapabilities> {
    let len = c_int::try_from(VIRTIO_HEADER_LEN).unwrap_or(10);
    // SAFETY: TUNSETVNETHDRSZ reads one int, and `len` is one.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })?;
    let try_set = |flags: c_uint| {
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        check(unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        })
        .is_ok()
    };
    let has_udp = try_set(TCP_OFFLOAD | UDP_OFFLOAD);
    let has_tcp = has_udp || try_set(TCP_OFFLOAD);
    Ok(TunCapabilities {
        has_header: true,
        has_tcp,
        has_udp,
    })
}

fn bring_up(name: &str, mtu: u16) -> io::Result<()> {
    // Interface ioctls go by any socket of the same namespace.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut set_mtu = request(name)?;
    set_mtu.ifr_ifru.ifru_mtu = c_int::from(mtu);
    // SAFETY: SIOCSIFMTU reads one ifreq with its mtu member set.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw const set_mtu) })?;
    let mut flags = request(name)?;
    // SAFETY: SIOCGIFFLAGS writes the flags member of one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut flags) })?;
    // SAFETY: the kernel just set this member; any bits are a short.
    let now = unsafe { flags.ifr_ifru.ifru_flags };
    flags.ifr_ifru.ifru_flags = now | short(libc::IFF_UP);
    // SAFETY: SIOCSIFFLAGS reads one ifreq with its flags member set.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const flags) })
}

fn request(name: &str) -> io::Result<ifreq> {
    // SAFETY: all members of ifreq are integers, arrays of them or a pointer that the used ioctls ignore: zeros do.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the kernel wants an end.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("interface name {name:?} must be 1 to {room} bytes long"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn name_of(request: &ifreq) -> String {
    let bytes = request.ifr_name.map(|c| c.to_ne_bytes()[0]);
    CStr::from_bytes_until_nul(&bytes)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The flags in use are all below 2^15.
fn short(flags: c_int) -> c_short {
    c_short::try_from(flags).unwrap_or_default()
}
