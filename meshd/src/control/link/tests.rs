//! Which coordinator is believed and which is not; going from one URL to the next.

use std::time::Duration;

use mesh_proto::auth_key::pin_of;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use serde_json::json;

use super::*;
use crate::control::fixture::{Authority, Fake, dead_url};
use crate::control::tls;

fn machine_key() -> MachinePrivateKey {
    MachinePrivateKey::from_bytes(&[1; 32])
}

/// A link that pins the key of an authority.
fn link(urls: &[&str], authority: &Authority) -> Link {
    let pin = pin_of(&authority.key());
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    Link::new(urls, tls::config(pin).unwrap(), machine_key())
}

#[tokio::test]
async fn a_coordinator_with_another_key_is_an_impostor_and_hears_no_request() {
    let (right, wrong) = (Authority::new(), Authority::new());
    let fake = Fake::start(&wrong).await;
    let err = link(&[&fake.url], &right).identity().await.unwrap_err();
    assert!(matches!(err, ControlError::Impostor { .. }), "{err}");
    assert!(!err.needs_person(), "the right one may come back: {err}");
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stranger_that_shows_the_pinned_certificate_without_its_key_is_no_coordinator() {
    let (right, wrong) = (Authority::new(), Authority::new());
    // A leaf of its own, with the certificate of the right key behind it.
    let fake = Fake::start(&wrong).await;
    fake.set_chain(wrong.leaf_under_the_name_of(&right));
    let err = link(&[&fake.url], &right).identity().await.unwrap_err();
    assert!(matches!(err, ControlError::Impostor { .. }), "{err}");
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn the_first_url_that_answers_is_used_until_it_does_not() {
    let authority = Authority::new();
    let first = Fake::start(&authority).await;
    let second = Fake::start(&authority).await;
    let dead = dead_url().await;
    let mut link = link(&[&dead, &first.url, &second.url], &authority);
    link.identity().await.unwrap();
    assert_eq!(link.url(), first.url);
    link.post("/api/v1/node/beat", &json!({})).await.unwrap();
    link.post("/api/v1/node/beat", &json!({})).await.unwrap();
    assert_eq!(first.asked().len(), 3, "{:?}", first.asked());
    drop(first);
    link.post("/api/v1/node/beat", &json!({})).await.unwrap();
    assert_eq!(link.url(), second.url);
    drop(second);
    let err = link.identity().await.unwrap_err();
    assert!(matches!(err, ControlError::Unreachable { .. }), "{err}");
}

#[tokio::test]
async fn an_impostor_among_the_urls_does_not_keep_the_node_from_the_next() {
    let (right, wrong) = (Authority::new(), Authority::new());
    let impostor = Fake::start(&wrong).await;
    let genuine = Fake::start(&right).await;
    let mut link = link(&[&impostor.url, &genuine.url], &right);
    link.identity().await.unwrap();
    assert_eq!(link.url(), genuine.url);
    assert_eq!(impostor.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_certificate_that_changed_under_the_same_key_is_taken_and_another_key_is_not() {
    let authority = Authority::new();
    let fake = Fake::start(&authority).await;
    let mut link = link(&[&fake.url], &authority);
    link.identity().await.unwrap();
    fake.set_chain(authority.chain());
    link.disconnect();
    link.identity().await.unwrap();
    fake.set_chain(Authority::new().chain());
    link.disconnect();
    let err = link.identity().await.unwrap_err();
    assert!(matches!(err, ControlError::Impostor { .. }), "{err}");
    assert_eq!(fake.asked().len(), 2);
}

#[derive(Debug)]
struct ClockAt(u64);

impl TimeProvider for ClockAt {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

#[tokio::test]
async fn the_pin_is_the_proof_and_not_the_date() {
    const DAY: u64 = 24 * 3600;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let fake = Fake::start(&authority).await;
    let impostor = Fake::start(&stranger).await;
    // The leaf is good from the first day to the last one of 2026.
    let (begin, end) = (1_767_225_600, 1_798_675_200);
    for now in [
        0,
        begin - 3_650 * DAY,
        begin - DAY,
        begin + DAY,
        end + DAY,
        end + 3_650 * DAY,
    ] {
        let pin = pin_of(&authority.key());
        let config = tls::config_at(pin, Arc::new(ClockAt(now))).unwrap();
        let ask = |url: &str| Link::new(vec![url.to_owned()], Arc::clone(&config), machine_key());
        ask(&fake.url).identity().await.unwrap();
        let err = ask(&impostor.url).identity().await.unwrap_err();
        // Of a stranger's certificate the date may be looked at first.
        let is_out = matches!(
            err,
            ControlError::Impostor { .. } | ControlError::Unreachable { .. }
        );
        assert!(is_out, "{now}: {err}");
    }
    assert_eq!(impostor.asked(), Vec::<String>::new());
}

#[test]
fn a_public_certificate_out_of_its_time_is_told_as_such() {
    let err = std::io::Error::other(rustls::Error::InvalidCertificate(CertificateError::Expired));
    let err = tls_error("https://mesh.example", &err);
    assert!(matches!(err, ControlError::Unreachable { .. }), "{err}");
    assert!(err.to_string().contains("clock"), "{err}");
}

#[test]
fn urls_are_taken_apart() {
    assert_eq!(
        authority("https://[fd00::1]:7443/x").as_deref(),
        Some("[fd00::1]:7443")
    );
    assert_eq!(authority("http://mesh.example"), None);
    assert_eq!(authority("https:///x"), None);
}
