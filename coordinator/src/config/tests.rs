//! Tests of the settings.

use super::*;

fn settings(text: &str) -> anyhow::Result<Settings> {
    toml::from_str::<ConfigFile>(text)?.into_settings()
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "suffix = \"lab\"\nlisten_on = 1\n").unwrap();
    let text = format!("{:#}", ConfigFile::read(&path).unwrap_err());
    assert!(
        text.contains("line 2") && text.contains("listen_on"),
        "{text}"
    );
}

#[test]
fn flags_go_before_the_file() {
    let flags = ConfigFile {
        suffix: Some("a".to_owned()),
        ..ConfigFile::default()
    };
    let file = ConfigFile {
        suffix: Some("b".to_owned()),
        user: Some("bob".parse().unwrap()),
        ..ConfigFile::default()
    };
    let settings = flags.over(file).into_settings().unwrap();
    assert_eq!(
        (settings.suffix.as_str(), settings.user.as_str()),
        ("a", "bob")
    );
}

#[test]
fn bad_values_are_refused() {
    for bad in [
        "suffix = 'Proxima'",
        "suffix = '.proxima'",
        "suffix = ''",
        "ipv4_pool = '10.77.0.0/24'",
        "ipv4_pool = '10.77.1.0/16'",
        "listen = []",
        "tls_cert = '/x'",
        "url = ['http://a']",
        "url = ['https://a/b']",
        "url = ['https://user@a']",
        "url = ['a']",
        "user = 'Anna!'",
    ] {
        assert!(settings(bad).is_err(), "{bad}");
    }
    let good = settings(
        "url = ['https://[2001:db8::1]:7443', 'https://mesh.example']\nnode_key_expiry_days = 0",
    )
    .unwrap();
    assert_eq!(good.node_key_ttl, None);
    assert_eq!(host_of(&good.urls[0]).as_deref(), Some("2001:db8::1"));
}
