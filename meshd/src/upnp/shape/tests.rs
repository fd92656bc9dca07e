//! What real gateways say, and what hostile ones might.

use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

/// As miniupnpd 2.3.1 says it, without manufacturers and the like.
pub(in crate::upnp) const IGD2: &str = r#"<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0" configId="1337"><specVersion><major>1</major><minor>1</minor></specVersion><device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:2</deviceType><friendlyName>Debian router</friendlyName><UDN>uuid:27b43072-7498-4cfa-911d-c5d90b247925</UDN><serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><serviceId>urn:upnp-org:serviceId:L3Forwarding1</serviceId><SCPDURL>/L3F.xml</SCPDURL><controlURL>/ctl/L3F</controlURL><eventSubURL>/evt/L3F</eventSubURL></service></serviceList><deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:2</deviceType><friendlyName>WANDevice</friendlyName><deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:2</deviceType><friendlyName>WANConnectionDevice</friendlyName><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><SCPDURL>/WANIPCn.xml</SCPDURL><controlURL>/ctl/IPConn</controlURL><eventSubURL>/evt/IPConn</eventSubURL></service><service><serviceType>urn:schemas-upnp-org:service:WANIPv6FirewallControl:1</serviceType><serviceId>urn:upnp-org:serviceId:WANIPv6Firewall1</serviceId><SCPDURL>/WANIP6FC.xml</SCPDURL><controlURL>/ctl/IP6FCtl</controlURL><eventSubURL>/evt/IP6FCtl</eventSubURL></service></serviceList></device></deviceList></device></deviceList><presentationURL>http://192.168.77.1/</presentationURL></device></root>
"#;

/// A gateway of version 1 with a base and both kinds of connections, as DSL routers have.
fn igd1(base: &str, ppp: &str, ip: &str) -> String {
    format!(
        r#"<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0">
  <URLBase>{base}</URLBase>
  <device>
    <deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
    <serviceList>
      <service>
        <serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType>
        <controlURL>{ppp}</controlURL>
      </service>
      <service>
        <serviceType> urn:schemas-upnp-org:service:WANIPConnection:1 </serviceType>
        <controlURL>
          {ip}
        </controlURL>
      </service>
    </serviceList>
  </device>
</root>"#
    )
}

fn description() -> Place {
    Place {
        port: 44_271,
        path: "/desc/rootDesc.xml".to_owned(),
    }
}

fn found(service: Service, port: u16, path: &str) -> Found {
    let path = path.to_owned();
    Found {
        service,
        place: Place { port, path },
    }
}

/// As miniupnpd answers a search.
fn answer(location: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
         USN: uuid:27b43072-7498-4cfa-911d-c5d90b247925::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
         EXT:\r\nSERVER: Debian/6.1 UPnP/1.1 MiniUPnPd/2.3.1\r\nLOCATION: {location}\r\n\
         OPT: \"http://schemas.upnp.org/upnp/1/0/\"; ns=01\r\n01-NLS: 1795681246\r\n\r\n\r\n"
    )
}

#[test]
fn an_answer_to_a_search_leads_to_the_gateway_alone() {
    let at = |location: &str| description_at(answer(location).as_bytes(), GATEWAY);
    let expected = Place {
        port: 44_271,
        path: "/rootDesc.xml".to_owned(),
    };
    assert_eq!(at("http://192.168.77.1:44271/rootDesc.xml"), Some(expected));
    let plain = at("http://192.168.77.1/?a=b").unwrap();
    assert_eq!((plain.port, plain.path.as_str()), (80, "/?a=b"));
    for elsewhere in [
        "http://192.168.77.2:44271/rootDesc.xml",
        "http://router.lan:44271/rootDesc.xml",
        "http://192.168.77.1@203.0.113.9/rootDesc.xml",
        "http://[::ffff:192.168.77.1]/rootDesc.xml",
        "https://192.168.77.1/rootDesc.xml",
        "/rootDesc.xml",
        "",
    ] {
        assert_eq!(at(elsewhere), None, "{elsewhere}");
    }
    let long = format!("http://192.168.77.1/{}", "a".repeat(PATH_LEN_MAX));
    assert_eq!(at(&long), None);
    let good = answer("http://192.168.77.1/");
    for other in [
        good.replace("200 OK", "404 Not Found"),
        good.replace("InternetGatewayDevice:1", "MediaServer:1"),
        good.replace("LOCATION", "X"),
        format!("{}\r\n", good.trim_end()),
        "NOTIFY * HTTP/1.1\r\n\r\n".to_owned(),
    ] {
        assert_eq!(description_at(other.as_bytes(), GATEWAY), None, "{other}");
    }
    for len in 0..good.len() {
        let _ = description_at(&good.as_bytes()[..len], GATEWAY);
    }
}

#[test]
fn the_services_that_map_ports_are_found_best_first() {
    let services = |text: &str| services(text, &description(), GATEWAY);
    assert_eq!(
        services(IGD2),
        Ok(vec![found(Service::Ip2, 44_271, "/ctl/IPConn")])
    );
    let both = services(&igd1("", "/ppp", "ctl?ip")).unwrap();
    let expected = [
        found(Service::Ip1, 44_271, "/desc/ctl?ip"),
        found(Service::Ppp1, 44_271, "/ppp"),
    ];
    assert_eq!(both, expected);
    let based = igd1("http://192.168.77.1:5000/up/", "/ppp", "ctl");
    let expected = [
        found(Service::Ip1, 5000, "/up/ctl"),
        found(Service::Ppp1, 5000, "/ppp"),
    ];
    assert_eq!(services(&based).unwrap(), expected);
}

#[test]
fn a_description_leads_nowhere_but_to_the_gateway() {
    let services = |text: &str| services(text, &description(), GATEWAY);
    let elsewhere = igd1("http://203.0.113.9/", "http://203.0.113.9/x", "/ip");
    assert_eq!(
        services(&elsewhere),
        Ok(vec![found(Service::Ip1, 44_271, "/ip")])
    );
    for url in [
        "http://203.0.113.9/x",
        "https://192.168.77.1/x",
        "a b",
        "//203.0.113.9:1/x\u{7f}",
    ] {
        assert_eq!(
            services(&igd1("", url, url)),
            Err(ShapeError::NoService),
            "{url}"
        );
    }
    // It is a path, whatever it looks like.
    let odd = services(&igd1("", "//203.0.113.9/x", "@203.0.113.9/x")).unwrap();
    assert!(
        odd.iter().all(|found| found.place.port == 44_271),
        "{odd:?}"
    );
}

#[test]
fn hostile_documents_are_refused() {
    let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbb\"><!ENTITY c \"&b;&b;&b;\">]><a><errorCode>&c;</errorCode></a>";
    let wide = format!("<a>{}</a>", "<b/>".repeat(16_000));
    let nested = |open: &str, n: usize| format!("{}{}", open.repeat(n), "</a>".repeat(n));
    let deep = [
        "<a>",
        "<a ><!--</a>--> ",
        "<a><![CDATA[</a>]]>",
        "<a><?x </a>?>",
        "<a b='>' c=\"/>\">",
        "<a b='\"'>",
    ]
    .map(|open| nested(open, 3_000));
    assert!(read(&nested("<a>", DEPTH_MAX)).is_ok());
    let plain = ["", "<", "no XML", bomb, &wide, "<a></b>", "\0"];
    for text in plain.into_iter().chain(deep.iter().map(String::as_str)) {
        assert!(matches!(read(text), Err(ShapeError::Xml(_))));
        assert_eq!(error_code(text), None);
    }
    for len in 0..IGD2.len() {
        let _ = services(&IGD2[..len], &description(), GATEWAY);
    }
}

#[test]
fn answers_are_read_and_nonsense_in_them_is_not() {
    let body = |inner: &str| {
        format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>{inner}</s:Body></s:Envelope>\r\n\0"
        )
    };
    let urn = Service::Ip2.urn();
    let told = |ip: &str| {
        body(&format!(
            "<u:GetExternalIPAddressResponse xmlns:u=\"{urn}\"><NewExternalIPAddress>{ip}</NewExternalIPAddress>\
             </u:GetExternalIPAddressResponse>"
        ))
    };
    assert_eq!(address(&told("203.0.77.2")), Ok([203, 0, 77, 2].into()));
    for none in ["", "router", "::1", "203.0.77.2.1"] {
        let expected = Err(ShapeError::Missing("NewExternalIPAddress"));
        assert_eq!(address(&told(none)), expected, "{none}");
    }
    let reserved = |port: &str| {
        reserved_port(&body(&format!(
            "<u:AddAnyPortMappingResponse xmlns:u=\"{urn}\"><NewReservedPort>{port}</NewReservedPort>\
             </u:AddAnyPortMappingResponse>"
        )))
    };
    assert_eq!(reserved("41820"), Ok(41_820));
    assert!(reserved("65536").is_err() && reserved("-1").is_err());
    let fault = body(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>\
         <UPnPError xmlns=\"urn:schemas-upnp-org:control-1-0\"><errorCode>718</errorCode>\
         <errorDescription>ConflictInMappingEntry</errorDescription></UPnPError></detail></s:Fault>",
    );
    assert_eq!(error_code(&fault), Some(CONFLICT));
}

#[test]
fn questions_are_as_gateways_want_them() {
    let [first, second] = searches();
    assert!(first.starts_with("M-SEARCH * HTTP/1.1\r\n") && first.ends_with("\r\n\r\n"));
    assert!(first.contains("MAN: \"ssdp:discover\"\r\n") && first != second);
    let add = Action::Add {
        client: [192, 168, 77, 2].into(),
        port: 41_820,
        outer_port: 7,
        lifetime_s: 0,
    };
    let body = add.body(Service::Ip1.urn());
    let document = Document::parse(&body).unwrap();
    let action = document
        .descendants()
        .find(|node| node.tag_name().name() == "AddPortMapping")
        .unwrap();
    assert_eq!(action.tag_name().namespace(), Some(Service::Ip1.urn()));
    let arguments: Vec<_> = action
        .children()
        .map(|node| (node.tag_name().name(), node.text().unwrap_or_default()))
        .collect();
    let expected = [
        ("NewRemoteHost", ""),
        ("NewExternalPort", "7"),
        ("NewProtocol", "UDP"),
        ("NewInternalPort", "41820"),
        ("NewInternalClient", "192.168.77.2"),
        ("NewEnabled", "1"),
        ("NewPortMappingDescription", DESCRIPTION),
        ("NewLeaseDuration", "0"),
    ];
    assert_eq!(arguments, expected);
}
