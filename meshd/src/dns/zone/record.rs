//! The records of the zone and how long they may be kept.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};

use crate::catalog::Entry;

/// Short, so that a dead host is out of answers soon.
pub(super) const TTL: u32 = 5;
/// Shorter: a model that is just being pulled should not stay unknown.
pub(super) const NEGATIVE_TTL: u32 = 2;

const STRING_LEN_MAX: usize = 255;

pub(super) fn a(name: &Name, ip: Ipv4Addr) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::A(A(ip)))
}

pub(super) fn aaaa(name: &Name, ip: Ipv6Addr) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::AAAA(AAAA(ip)))
}

pub(super) fn pointer(name: &Name, target: &Name) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target.clone())))
}

pub(super) fn name_server(name: &Name, server: Name) -> Record {
    Record::from_rdata(name.clone(), TTL, RData::NS(NS(server)))
}

pub(super) fn service(name: &Name, priority: u16, port: u16, target: Name) -> Record {
    Record::from_rdata(
        name.clone(),
        TTL,
        RData::SRV(SRV::new(priority, 0, port, target)),
    )
}

pub(super) fn soa(apex: Name, ttl: u32, server: Name, contact: Name, serial: u32) -> Record {
    let soa = SOA::new(server, contact, serial, 3600, 600, 86_400, NEGATIVE_TTL);
    Record::from_rdata(apex, ttl, RData::SOA(soa))
}

/// The short answer to ANY (RFC 8482).
pub(super) fn minimal_any(name: &Name) -> Record {
    let hinfo = HINFO::new("RFC8482".to_owned(), String::new());
    Record::from_rdata(name.clone(), TTL, RData::HINFO(hinfo))
}

/// What a model name stands for, to read.
pub(super) fn model_text(name: &Name, entry: &Entry) -> Record {
    let mut strings = vec!["v=1".to_owned(), format!("model={}", entry.model)];
    strings.extend(entry.digest.map(|digest| format!("digest={digest}")));
    strings.push(format!("hosts={}", entry.online().count()));
    for string in &mut strings {
        truncate(string, STRING_LEN_MAX);
    }
    Record::from_rdata(name.clone(), TTL, RData::TXT(TXT::new(strings)))
}

fn truncate(text: &mut String, len: usize) {
    let end = (0..=len.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
}
