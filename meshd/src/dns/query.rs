//! One question to this node's own zone, asked by a person. Pure.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use mesh_proto::control::code;
use mesh_proto::local::{DnsAnswer, DnsQuery, DnsRecord};

use super::server::Names;
use crate::local::LocalError;

/// Asks the zone.
///
/// # Errors
/// [`code::BAD_REQUEST`] for what is no name or type, [`code::NOT_FOUND`] for a name that is none of the mesh's.
pub fn ask(names: &Names, query: &DnsQuery) -> Result<DnsAnswer, LocalError> {
    let bad = |message: String| LocalError::new(code::BAD_REQUEST, message);
    let mut name = Name::from_ascii(&query.name)
        .map_err(|err| bad(format!("`{}` is no DNS name: {err}", query.name)))?;
    name.set_fqdn(true);
    let kind: RecordType = query.kind.to_ascii_uppercase().parse().map_err(|_| {
        bad(format!(
            "`{}` is no record type: A, AAAA, SRV, TXT, PTR and ANY have answers here",
            query.kind
        ))
    })?;
    let reply = names.answer(&name, kind).ok_or_else(|| {
        LocalError::new(
            code::NOT_FOUND,
            format!("`{name}` is no name of this mesh, and this node forwards none"),
        )
    })?;
    let code = if reply.code == ResponseCode::NXDomain {
        "NXDOMAIN"
    } else {
        "NOERROR"
    };
    Ok(DnsAnswer {
        name: name.to_ascii(),
        kind: kind.to_string(),
        code: code.to_owned(),
        answers: reply.answers.iter().map(text).collect(),
        additionals: reply.additionals.iter().map(text).collect(),
    })
}

fn text(record: &Record) -> DnsRecord {
    DnsRecord {
        name: record.name.to_ascii(),
        ttl: record.ttl,
        kind: record.record_type().to_string(),
        data: record.data.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_proto::share::HostOffers;
    use tokio::sync::watch;

    use super::*;
    use crate::dns::fixture::{peer, view_of};
    use crate::dns::server::{DnsServer, Found};
    use crate::dns::upstream::Upstreams;

    fn names() -> Names {
        let peers = vec![peer(2, "gpu", HostOffers::default())];
        let view = Arc::new(view_of(HostOffers::default(), peers.into_iter().collect()));
        let (_, view) = watch::channel(Some(view));
        DnsServer::without_sockets(view, Arc::default(), Arc::new(Upstreams::default())).names()
    }

    fn asked(name: &str, kind: &str) -> Result<DnsAnswer, LocalError> {
        let (name, kind) = (name.to_owned(), kind.to_owned());
        ask(&names(), &DnsQuery { name, kind })
    }

    #[test]
    fn the_zone_answers_by_name_and_type() {
        let answer = asked("gpu.node.proxima", "a").unwrap();
        assert_eq!(
            (answer.code.as_str(), answer.kind.as_str()),
            ("NOERROR", "A")
        );
        let [record] = answer.answers.as_slice() else {
            panic!("{answer:?}");
        };
        assert_eq!(
            (record.name.as_str(), record.kind.as_str()),
            ("gpu.node.proxima.", "A")
        );
        let Found::Addrs(addrs) = names().addrs("GPU.node.proxima.") else {
            panic!("it is there");
        };
        assert_eq!(record.data, addrs[0].to_string());
        assert!(addrs[0].is_ipv4() && addrs[1].is_ipv6());
        let missing = asked("nobody.node.proxima", "A").unwrap();
        assert_eq!(
            (missing.code.as_str(), missing.answers.len()),
            ("NXDOMAIN", 0)
        );
    }

    #[test]
    fn what_the_zone_cannot_know_is_told_apart() {
        assert_eq!(asked("example.com", "A").unwrap_err().code, code::NOT_FOUND);
        assert_eq!(
            asked("gpu.node.proxima", "B").unwrap_err().code,
            code::BAD_REQUEST
        );
        assert_eq!(
            asked(&"a".repeat(300), "A").unwrap_err().code,
            code::BAD_REQUEST
        );
        assert_eq!(names().addrs("example.com"), Found::Foreign);
        assert_eq!(names().addrs("nobody.node.proxima"), Found::Missing);
        assert_eq!(names().addrs(""), Found::Foreign);
    }
}
