//! The example configuration: every key is there, with its default.

use coordinator::config::ConfigFile;

const EXAMPLE: &str = include_str!("../../../packaging/config/coordinator.toml");

#[test]
fn the_example_configuration_is_the_defaults() {
    assert_eq!(
        toml::from_str::<ConfigFile>(EXAMPLE).unwrap(),
        ConfigFile::default()
    );
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with(' '))
                .unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let mut file: ConfigFile = toml::from_str(&uncommented).unwrap();
    // Three keys have no default that could be written down.
    assert!(file.tls_cert.take().is_some() && file.tls_key.take().is_some());
    assert!(file.url.take().is_some() && file.ipv4_pool.take().is_some());
    let mut expected = ConfigFile::default().into_settings().unwrap();
    expected.is_listen_default = false;
    assert!(file.stun.take().is_some());
    assert_eq!(file.into_settings().unwrap(), expected);
}
