//! Takes out of a report whose it is: addresses, names, ids and keys become tokens, the same one for the same value. Pure.
//!
//! What is needed to find a fault stays: which address is which, how they are nested in sentences, ports, loopback
//! addresses, the names of models, figures.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

/// What the values under a key of the report are.
const KINDS: [(&str, &str); 14] = [
    ("name", "name"),
    ("names", "name"),
    ("hostname", "name"),
    ("dns_name", "name"),
    ("user", "user"),
    ("users", "user"),
    ("tags", "tag"),
    ("id", "id"),
    ("network_id", "mesh"),
    ("relay", "id"),
    ("uuid", "id"),
    ("suffix", "suffix"),
    ("domain", "name"),
    ("interface", "interface"),
];

/// Texts that name nobody.
const COMMON: [&str; 4] = ["proxima", "proxima.internal", "proxima0", ""];

/// Words are made of these; whatever else there is stands between them.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '%')
}

/// Values and their tokens.
#[derive(Debug, Default)]
struct Tokens {
    by_value: BTreeMap<String, String>,
    n_by_kind: BTreeMap<&'static str, usize>,
}

/// Replaces what tells whose report it is.
pub(crate) fn anonymise(report: &mut Value) {
    let mut tokens = Tokens::default();
    collect(report, None, &mut tokens);
    replace(report, &mut tokens);
}

/// Learns names from the places where they stand alone; elsewhere they are only found.
fn collect(value: &Value, kind: Option<&'static str>, tokens: &mut Tokens) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let kind = KINDS.iter().find(|(name, _)| name == key);
                collect(member, kind.map(|(_, kind)| *kind), tokens);
            }
        }
        Value::Array(members) => {
            for member in members {
                collect(member, kind, tokens);
            }
        }
        Value::String(text) => {
            if let Some(kind) = kind {
                tokens.learn(kind, text);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn replace(value: &mut Value, tokens: &mut Tokens) {
    match value {
        Value::Object(members) => {
            let keys: Vec<String> = members.keys().cloned().collect();
            for key in keys {
                if let Some(mut member) = members.remove(&key) {
                    replace(&mut member, tokens);
                    members.insert(tokens.text(&key), member);
                }
            }
        }
        Value::Array(members) => members
            .iter_mut()
            .for_each(|member| replace(member, tokens)),
        Value::String(text) => *text = tokens.text(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Tokens {
    fn learn(&mut self, kind: &'static str, text: &str) {
        let text = text.to_ascii_lowercase();
        if COMMON.contains(&text.as_str()) || text.parse::<IpAddr>().is_ok() {
            return;
        }
        // A DNS name is known by its first label, which is the node's name.
        let value = if kind == "name" {
            text.split('.').next().unwrap_or_default()
        } else {
            &text
        };
        self.token(kind, value);
    }

    fn token(&mut self, kind: &'static str, value: &str) -> String {
        if let Some(token) = self.by_value.get(value) {
            return token.clone();
        }
        let n = self.n_by_kind.entry(kind).or_default();
        *n += 1;
        let token = format!("{kind}-{n}");
        self.by_value.insert(value.to_owned(), token.clone());
        token
    }

    /// A text with each of its words looked at.
    fn text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while !rest.is_empty() {
            let word_len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(word_len);
            out.push_str(&self.word(word));
            let gap_len = after.find(is_word).unwrap_or(after.len());
            let (gap, next) = after.split_at(gap_len);
            out.push_str(gap);
            rest = next;
        }
        out
    }

    fn word(&mut self, word: &str) -> String {
        if word.is_empty() {
            return String::new();
        }
        // Marks at the end of a sentence are no part of the word before them.
        let bare = word.trim_end_matches(['.', ':', '-']);
        let tail = word.get(bare.len()..).unwrap_or_default();
        format!("{}{tail}", self.bare_word(bare))
    }

    fn bare_word(&mut self, word: &str) -> String {
        if let Ok(ip) = word.parse::<IpAddr>() {
            return self.ip(ip);
        }
        if let Ok(endpoint) = word.parse::<SocketAddr>() {
            return format!("{}:{}", self.ip(endpoint.ip()), endpoint.port());
        }
        if let Some(token) = self.by_value.get(&word.to_ascii_lowercase()) {
            return token.clone();
        }
        if is_key(word) {
            return self.token("key", word);
        }
        // What a colon or a dot joins, such as a host and a port or the labels of a DNS name.
        for separator in [':', '.'] {
            if let Some((head, tail)) = word.split_once(separator) {
                return format!(
                    "{}{separator}{}",
                    self.bare_word(head),
                    self.bare_word(tail)
                );
            }
        }
        word.to_owned()
    }

    fn ip(&mut self, ip: IpAddr) -> String {
        let kind = match ip {
            IpAddr::V4(ip) if ip.is_loopback() || ip.is_unspecified() => return ip.to_string(),
            IpAddr::V6(ip) if ip.is_loopback() || ip.is_unspecified() => return ip.to_string(),
            IpAddr::V4(ip) if ip.is_private() => "private-ipv4",
            IpAddr::V4(_) => "ipv4",
            IpAddr::V6(ip) if ip.is_unique_local() => "private-ipv6",
            IpAddr::V6(ip) if ip.is_unicast_link_local() => "link-ipv6",
            IpAddr::V6(_) => "ipv6",
        };
        self.token(kind, &ip.to_string())
    }
}

/// Whether a word looks like a key or a digest: long, and no word of any language.
fn is_key(word: &str) -> bool {
    let has_digit = word.contains(|c: char| c.is_ascii_digit());
    let is_plain = word
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    word.len() >= 32 && has_digit && is_plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_value_is_the_same_token_wherever_it_stands() {
        let mut report = json!({
            "status": {
                "node": { "name": "laptop", "dns_name": "laptop.node.proxima", "ipv4": "10.171.1.2", "user": "anna",
                          "endpoints": ["203.0.113.5:41820", "[2001:db8::7]:41820"], "suffix": "proxima" },
                "peers": [{ "name": "gpu1", "ipv4": "10.171.1.3", "user": "anna", "id": "aeaqcaibaeaqcaib",
                            "path": { "kind": "direct", "endpoint": "203.0.113.5:5000" } }],
                "coordinator": { "url": "https://mesh.example.org:7443",
                                 "error": "cannot reach 203.0.113.5:7443 from laptop: refused." },
            },
            "share": { "offers": { "models": [{ "model": "llama3.2:1b" }], "audience": { "users": ["anna"] } },
                       "backends": [{ "url": "http://127.0.0.1:11434" }] },
            "metrics": "meshd_peer_up{peer=\"gpu1\",id=\"aeaqcaibaeaqcaib\"} 1\nmeshd_up 1\n",
        });
        report["status"]["coordinator"]["hostname"] = json!("mesh.example.org");
        anonymise(&mut report);
        let text = report.to_string();
        for secret in [
            "laptop",
            "gpu1",
            "anna",
            "10.171",
            "203.0.113",
            "2001:db8",
            "aeaqcaib",
            "mesh.example",
        ] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let status = &report["status"];
        let own = status["node"]["name"].as_str().unwrap();
        assert_eq!(status["node"]["dns_name"], format!("{own}.node.proxima"));
        assert_eq!(status["node"]["user"], status["peers"][0]["user"]);
        let seen = status["node"]["endpoints"][0].as_str().unwrap();
        let ip = seen.strip_suffix(":41820").unwrap();
        assert_eq!(status["peers"][0]["path"]["endpoint"], format!("{ip}:5000"));
        assert_eq!(
            status["coordinator"]["error"],
            format!("cannot reach {ip}:7443 from {own}: refused.")
        );
        let peer = status["peers"][0]["name"].as_str().unwrap();
        assert!(
            report["metrics"]
                .as_str()
                .unwrap()
                .contains(&format!("peer=\"{peer}\""))
        );
        // What is nobody's stays.
        assert_eq!(
            report["share"]["backends"][0]["url"],
            "http://127.0.0.1:11434"
        );
        assert_eq!(
            report["share"]["offers"]["models"][0]["model"],
            "llama3.2:1b"
        );
    }

    #[test]
    fn keys_are_taken_out_and_words_stay() {
        let key = "nk_7dc0b0a5f2b14ddc9f6a1c5e2c3a4b5d6e7f8090a1b2c3d4e5f60718293a4b5c";
        let mut report = json!({ "log": format!("refused {key}, twice: {key}"), "n": 5, "note": "a sentence, as it was." });
        anonymise(&mut report);
        assert_eq!(report["log"], "refused key-1, twice: key-1");
        assert_eq!(report["note"], "a sentence, as it was.");
        assert_eq!(report["n"], 5);
    }
}
