//! What is said to a UPnP gateway and what it answers: searches, descriptions, SOAP. Pure; no network.

use std::net::Ipv4Addr;

use http::Uri;
use roxmltree::{Document, Node, ParsingOptions};

/// The kinds of devices that map ports; one of version 2 answers to both.
const DEVICES: [&str; 2] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
];
/// The mapping's name at the gateway, for its owner to see.
const DESCRIPTION: &str = "Proxima mesh";
const PATH_LEN_MAX: usize = 512;
/// Headers of an answer to a search.
const N_HEADERS_MAX: usize = 32;
/// Elements, texts and the like of one document; the longest description in use has some 400.
const N_NODES_MAX: u32 = 8_000;
/// Elements within each other; the deepest description in use has some 10.
const DEPTH_MAX: usize = 32;
/// Services of one gateway that are tried.
const N_SERVICES_MAX: usize = 4;

/// The outer port is another machine's (UPnP-gw-WANIPConnection-v2, section 2.5.16).
pub(super) const CONFLICT: u32 = 718;
/// The gateway maps without an end or not at all (UPnP-gw-WANIPConnection-v1, section 2.4.16).
pub(super) const ONLY_PERMANENT: u32 = 725;

/// Why an answer is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ShapeError {
    /// No XML, or too much of it.
    #[error("not readable: {0}")]
    Xml(String),
    /// The description has none.
    #[error("it describes no service that maps ports")]
    NoService,
    /// An element is not there, or has no value of its kind.
    #[error("it says nothing sensible for {0}")]
    Missing(&'static str),
    /// All ports that were tried are others'.
    #[error("all outer ports that were tried are taken")]
    NoPort,
}

/// A port and a path at the gateway; the address is always its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) port: u16,
    pub(super) path: String,
}

/// The services that map ports, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    Ip2,
    Ip1,
    Ppp1,
}

impl Service {
    const ALL: [Self; 3] = [Self::Ip2, Self::Ip1, Self::Ppp1];

    pub(super) const fn urn(self) -> &'static str {
        match self {
            Self::Ip2 => "urn:schemas-upnp-org:service:WANIPConnection:2",
            Self::Ip1 => "urn:schemas-upnp-org:service:WANIPConnection:1",
            Self::Ppp1 => "urn:schemas-upnp-org:service:WANPPPConnection:1",
        }
    }
}

/// A service and where it is controlled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) service: Service,
    pub(super) place: Place,
}

/// What a service is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Tell the outer address.
    Address,
    Add {
        client: Ipv4Addr,
        port: u16,
        outer_port: u16,
        /// 0 for no end.
        lifetime_s: u32,
    },
    /// The same, with another outer port where this one is taken.
    AddAny {
        client: Ipv4Addr,
        port: u16,
        lifetime_s: u32,
    },
    Delete {
        outer_port: u16,
    },
}

impl Action {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Address => "GetExternalIPAddress",
            Self::Add { .. } => "AddPortMapping",
            Self::AddAny { .. } => "AddAnyPortMapping",
            Self::Delete { .. } => "DeletePortMapping",
        }
    }

    /// The SOAP envelope (UPnP Device Architecture 1.1, section 3.1.1); arguments in the order of the service's own
    /// description, on which some insist.
    pub(super) fn body(&self, service: &str) -> String {
        let add = |outer_port: u16, port: u16, client: Ipv4Addr, lifetime_s: u32| {
            format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{outer_port}</NewExternalPort>\
                 <NewProtocol>UDP</NewProtocol><NewInternalPort>{port}</NewInternalPort>\
                 <NewInternalClient>{client}</NewInternalClient><NewEnabled>1</NewEnabled>\
                 <NewPortMappingDescription>{DESCRIPTION}</NewPortMappingDescription>\
                 <NewLeaseDuration>{lifetime_s}</NewLeaseDuration>"
            )
        };
        let arguments = match *self {
            Self::Address => String::new(),
            Self::Add {
                client,
                port,
                outer_port,
                lifetime_s,
            } => add(outer_port, port, client, lifetime_s),
            Self::AddAny {
                client,
                port,
                lifetime_s,
            } => add(port, port, client, lifetime_s),
            Self::Delete { outer_port } => format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{outer_port}</NewExternalPort>\
                 <NewProtocol>UDP</NewProtocol>"
            ),
        };
        let name = self.name();
        format!(
            "<?xml version=\"1.0\"?>\r\n\
             <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\">\
             <s:Body><u:{name} xmlns:u=\"{service}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        )
    }
}

/// The questions of a search, one for each kind of device.
pub(super) fn searches() -> [String; 2] {
    DEVICES.map(|device| {
        format!(
            "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
             ST: {device}\r\n\r\n"
        )
    })
}

/// Where the description is, by an answer to a search; `None` when it is no answer, or leads away from the gateway.
pub(super) fn description_at(answer: &[u8], gateway: Ipv4Addr) -> Option<Place> {
    let mut headers = [httparse::EMPTY_HEADER; N_HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let is_whole = response.parse(answer).ok()?.is_complete();
    let value = |name: &str| {
        let header = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok().map(str::trim)
    };
    let is_gateway = DEVICES.contains(&value("st")?);
    let place = place(value("location")?, gateway)?;
    (is_whole && response.code == Some(200) && is_gateway).then_some(place)
}

/// A URL at the gateway.
fn place(url: &str, gateway: Ipv4Addr) -> Option<Place> {
    let uri: Uri = url.parse().ok()?;
    let is_there = uri.scheme_str() == Some("http") && uri.host()?.parse() == Ok(gateway);
    let path = uri.path_and_query()?.as_str().to_owned();
    (is_there && path.len() <= PATH_LEN_MAX).then(|| Place {
        port: uri.port_u16().unwrap_or(80),
        path,
    })
}

/// The services of a description that map ports, best first, as far as they are controlled at the gateway.
pub(super) fn services(
    text: &str,
    description: &Place,
    gateway: Ipv4Addr,
) -> Result<Vec<Found>, ShapeError> {
    let document = read(text)?;
    let base = text_of(&document.root_element(), "URLBase").and_then(|url| place(url, gateway));
    let base = base.as_ref().unwrap_or(description);
    let mut found: Vec<Found> = document
        .descendants()
        .filter(|node| node.tag_name().name() == "service")
        .filter_map(|node| {
            let kind = text_of(&node, "serviceType")?;
            let service = Service::ALL
                .into_iter()
                .find(|service| service.urn() == kind)?;
            let place = control_at(text_of(&node, "controlURL")?, base, gateway)?;
            Some(Found { service, place })
        })
        .collect();
    // The first of a kind is that of the first connection.
    found.sort_by_key(|found| found.service);
    found.truncate(N_SERVICES_MAX);
    if found.is_empty() {
        return Err(ShapeError::NoService);
    }
    Ok(found)
}

/// A control URL, which may be relative (RFC 3986, section 5.2, without dots).
fn control_at(url: &str, base: &Place, gateway: Ipv4Addr) -> Option<Place> {
    if url.contains("://") {
        return place(url, gateway);
    }
    let path = if url.starts_with('/') {
        url.to_owned()
    } else {
        let folder = base.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{folder}/{url}")
    };
    let url = format!("http://{gateway}:{}{path}", base.port);
    place(&url, gateway)
}

/// The outer address.
pub(super) fn address(answer: &str) -> Result<Ipv4Addr, ShapeError> {
    value(answer, "NewExternalIPAddress")
}

/// The outer port that the gateway chose.
pub(super) fn reserved_port(answer: &str) -> Result<u16, ShapeError> {
    value(answer, "NewReservedPort")
}

/// The code in a fault.
pub(super) fn error_code(answer: &str) -> Option<u32> {
    value(answer, "errorCode").ok()
}

fn value<T: std::str::FromStr>(answer: &str, name: &'static str) -> Result<T, ShapeError> {
    let document = read(answer)?;
    let mut nodes = document.descendants();
    let node = nodes.find(|node| node.tag_name().name() == name);
    let text = node.and_then(|node| node.text());
    text.and_then(|text| text.trim().parse().ok())
        .ok_or(ShapeError::Missing(name))
}

fn text_of<'a>(node: &Node<'a, '_>, name: &str) -> Option<&'a str> {
    let mut children = node.children();
    let child = children.find(|child| child.tag_name().name() == name)?;
    child.text().map(str::trim)
}

/// Reads XML. A document type, which could make more of a text than was sent, is refused, and so is what is nested deeply:
/// the parser goes down by recursion.
fn read(text: &str) -> Result<Document<'_>, ShapeError> {
    let options = ParsingOptions {
        nodes_limit: N_NODES_MAX,
        ..ParsingOptions::default()
    };
    // Some end their answers with zeros.
    let text = text.trim_end_matches('\0');
    if !is_shallow(text) {
        return Err(ShapeError::Xml("nested too deeply".to_owned()));
    }
    Document::parse_with_options(text, options).map_err(|err| ShapeError::Xml(err.to_string()))
}

/// Whether elements are nested no deeper than [`DEPTH_MAX`], as far as the text is well-formed: where it is not, the parser
/// stops.
fn is_shallow(text: &str) -> bool {
    let mut rest = text;
    let mut depth = 0_usize;
    while let Some((_, tag)) = rest.split_once('<') {
        let skipped = [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>")]
            .into_iter()
            .find_map(|(begin, end)| Some((tag.strip_prefix(begin)?, end)));
        if let Some((inside, end)) = skipped {
            rest = inside.split_once(end).map_or("", |(_, after)| after);
            continue;
        }
        let (inside, after) = split_tag(tag);
        if inside.starts_with('/') {
            depth = depth.saturating_sub(1);
        } else if !inside.ends_with('/') {
            depth += 1;
        }
        if depth > DEPTH_MAX {
            return false;
        }
        rest = after;
    }
    true
}

/// What is in a tag, and what comes after it. A `>` in an attribute's value is none that ends it.
fn split_tag(tag: &str) -> (&str, &str) {
    let mut quote = None;
    let end = tag.find(|sign: char| match quote {
        None if sign == '>' => true,
        None => {
            quote = matches!(sign, '"' | '\'').then_some(sign);
            false
        }
        Some(open) => {
            quote = (sign != open).then_some(open);
            false
        }
    });
    let end = end.unwrap_or(tag.len());
    (&tag[..end], tag.get(end + 1..).unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests;
