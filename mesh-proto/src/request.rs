//! Signed requests: how a node proves each request to its coordinator.
//!
//! The signature covers method, path with query, the body's hash and a nonce that the coordinator gave out, so a request
//! survives a proxy that ends TLS and cannot be replayed, here or on another replica. The coordinator hands a fresh nonce
//! with each answer ([`NONCE_HEADER`]), as ACME does (RFC 8555, section 6.5).

use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::key::{KeyError, MachineKey, MachinePrivateKey, Purpose, Signature};

/// The answer header that carries the nonce for the next request.
pub const NONCE_HEADER: &str = "proxima-nonce";

/// The scheme word of the `authorization` header.
pub const SCHEME: &str = "Proxima";

/// The proof that goes into the `authorization` header of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestProof {
    /// Who asks.
    pub machine_key: MachineKey,
    /// The coordinator's nonce that is used up by this request.
    pub nonce: String,
    /// The machine key's signature.
    pub signature: Signature,
}

impl RequestProof {
    /// Signs a request. `path` includes the query.
    #[must_use]
    pub fn sign(
        key: &MachinePrivateKey,
        method: &str,
        path: &str,
        body: &[u8],
        nonce: &str,
    ) -> Self {
        let signature = key.sign(Purpose::Request, &message(method, path, body, nonce));
        Self {
            machine_key: key.public(),
            nonce: nonce.to_owned(),
            signature,
        }
    }

    /// Checks that the named machine key signed this request. Whether the nonce is fresh is the caller's to know.
    ///
    /// # Errors
    /// [`KeyError`] when it did not.
    pub fn verify(&self, method: &str, path: &str, body: &[u8]) -> Result<(), KeyError> {
        self.machine_key.verify(
            Purpose::Request,
            &message(method, path, body, &self.nonce),
            &self.signature,
        )
    }

    /// The value of the `authorization` header.
    #[must_use]
    pub fn to_header(&self) -> String {
        format!(
            "{SCHEME} key={},nonce={},sig={}",
            self.machine_key, self.nonce, self.signature
        )
    }
}

impl FromStr for RequestProof {
    type Err = KeyError;

    fn from_str(header: &str) -> Result<Self, KeyError> {
        let rest = header
            .strip_prefix(SCHEME)
            .ok_or(KeyError::BadSignature)?
            .trim_start();
        let (mut key, mut nonce, mut signature) = (None, None, None);
        for part in rest.split(',') {
            match part.trim().split_once('=') {
                Some(("key", value)) => key = Some(value.parse()?),
                Some(("nonce", value)) => nonce = Some(value.to_owned()),
                Some(("sig", value)) => signature = Some(value.parse()?),
                Some(_) | None => return Err(KeyError::BadSignature),
            }
        }
        let (Some(machine_key), Some(nonce), Some(signature)) = (key, nonce, signature) else {
            return Err(KeyError::BadSignature);
        };
        Ok(Self {
            machine_key,
            nonce,
            signature,
        })
    }
}

fn message(method: &str, path: &str, body: &[u8], nonce: &str) -> Vec<u8> {
    let hash = Sha256::digest(body);
    let hash = data_encoding::HEXLOWER.encode(&hash);
    format!("{method}\n{path}\n{hash}\n{nonce}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_survives_its_header_and_covers_every_part() {
        let key = MachinePrivateKey::from_bytes(&[1; 32]);
        let proof = RequestProof::sign(&key, "POST", "/api/v1/x?y=1", b"{}", "n0nce");
        let parsed: RequestProof = proof.to_header().parse().unwrap();
        assert_eq!(parsed, proof);
        assert_eq!(parsed.verify("POST", "/api/v1/x?y=1", b"{}"), Ok(()));
        assert!(parsed.verify("GET", "/api/v1/x?y=1", b"{}").is_err());
        assert!(parsed.verify("POST", "/api/v1/x?y=2", b"{}").is_err());
        assert!(parsed.verify("POST", "/api/v1/x?y=1", b"{ }").is_err());
        let other = RequestProof {
            nonce: "other".to_owned(),
            ..parsed
        };
        assert!(other.verify("POST", "/api/v1/x?y=1", b"{}").is_err());
    }

    #[test]
    fn a_malformed_header_is_refused() {
        for header in [
            "",
            "Proxima",
            "Bearer x",
            "Proxima key=mk:AA",
            "Proxima key=,nonce=,sig=",
            "Proxima a=b",
        ] {
            assert!(header.parse::<RequestProof>().is_err(), "{header}");
        }
    }
}
