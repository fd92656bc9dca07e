//! Keeps the mesh's addresses inside the overlay, and lets the overlay through this machine's own firewall.
//!
//! Two parts: a table of our own, `inet proxima`, that drops packets with mesh addresses from any other interface; and
//! one accept rule for the overlay interface in each input chain that others made and that refuses what it does not
//! know. Both carry our name, so what a crash left behind is found and replaced.

use std::io;

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_proto::local::Problem;
use serde_json::Value;

use super::command;

const TABLE: &str = "proxima";
const MARK: &str = "proxima overlay";

/// What the firewall keeps apart.
#[derive(Debug, Clone)]
pub struct Firewall {
    interface: String,
    pool: Ipv4Net,
    prefix: Ipv6Net,
}

impl Firewall {
    /// Prepares the rules of one overlay interface.
    #[must_use]
    pub fn new(interface: &str, pool: Ipv4Net, prefix: Ipv6Net) -> Self {
        Self {
            interface: interface.to_owned(),
            pool,
            prefix,
        }
    }

    /// Sets the rules, in one transaction and over whatever an earlier run left; can be repeated at any time.
    ///
    /// `Some` when the mesh works without them and its owner should know.
    pub async fn apply(&self) -> Option<Problem> {
        // Somebody may change the rules between the look and the change: then one more try.
        let mut result = self.try_apply().await;
        if result
            .as_ref()
            .is_err_and(|err| err.kind() != io::ErrorKind::NotFound)
        {
            result = self.try_apply().await;
        }
        result.err().map(|err| problem(&err))
    }

    async fn try_apply(&self) -> io::Result<()> {
        let rules = list().await?;
        let script = self.script(&rules);
        nft(&["-f", "-"], &script).await.map(drop)
    }

    fn script(&self, rules: &Value) -> String {
        let mut script = leftover_rules(rules);
        for chain in closed_input_chains(rules) {
            script += &format!(
                "insert rule {chain} iifname \"{}\" counter accept comment \"{MARK}\"\n",
                self.interface
            );
        }
        // Added first, so that deleting it cannot fail: the table is replaced whole, without a moment in between.
        script += &format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
        script += &format!(
            "table inet {TABLE} {{\n\
             \tchain inner {{\n\
             \t\ttype filter hook prerouting priority raw; policy accept;\n\
             \t\tiifname {{ \"lo\", \"{}\" }} accept\n\
             \t\tip saddr {pool} counter drop\n\
             \t\tip daddr {pool} counter drop\n\
             \t\tip6 saddr {prefix} counter drop\n\
             \t\tip6 daddr {prefix} counter drop\n\
             \t}}\n}}\n",
            self.interface,
            pool = self.pool,
            prefix = self.prefix,
        );
        script
    }

    /// Takes the rules away, also those of an earlier run. Nothing to do is no error.
    ///
    /// # Errors
    /// When rules are there and cannot be taken away.
    pub async fn undo() -> io::Result<()> {
        let rules = match list().await {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let mut script = leftover_rules(&rules);
        let is_ours = |table: &&Value| table["family"] == "inet" && table["name"] == TABLE;
        if objects(&rules, "table").any(|table| is_ours(&table)) {
            script += &format!("delete table inet {TABLE}\n");
        }
        if script.is_empty() {
            Ok(())
        } else {
            nft(&["-f", "-"], &script).await.map(drop)
        }
    }
}

async fn list() -> io::Result<Value> {
    let json = nft(&["--json", "--stateless", "list", "ruleset"], "").await?;
    serde_json::from_str(&json).map_err(io::Error::other)
}

async fn nft(arguments: &[&str], input: &str) -> io::Result<String> {
    // A service's PATH need not have the administrator's programs.
    match command::run("/usr/sbin/nft", arguments, input).await {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            command::run("nft", arguments, input).await
        }
        other => other,
    }
}

/// What the owner is told when the rules cannot be set.
pub(crate) fn problem(err: &io::Error) -> Problem {
    let (message, fix) = if err.kind() == io::ErrorKind::NotFound {
        ("there is no nft program: packets with mesh addresses from other networks are not dropped".to_owned(), "apt install nftables")
    } else {
        (
            format!("the firewall rules of the mesh cannot be set: {err}"),
            "nft list ruleset",
        )
    };
    Problem {
        code: "firewall_unavailable".to_owned(),
        message,
        fix: Some(fix.to_owned()),
    }
}

fn objects<'a>(rules: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    rules["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(move |object| object.get(kind))
}

/// The commands that delete our rules in the chains of others.
fn leftover_rules(rules: &Value) -> String {
    let mut script = String::new();
    for rule in objects(rules, "rule").filter(|rule| rule["comment"] == MARK) {
        if let (Some(chain), Some(handle)) = (chain_path(rule, "chain"), rule["handle"].as_u64()) {
            script += &format!("delete rule {chain} handle {handle}\n");
        }
    }
    script
}

/// Input chains of others that end in a refusal: by policy, or by a rule that says so.
fn closed_input_chains(rules: &Value) -> Vec<String> {
    let mut chains = Vec::new();
    for chain in objects(rules, "chain") {
        let is_input = chain["hook"] == "input" && chain["type"] == "filter";
        if !is_input || chain["table"] == TABLE {
            continue;
        }
        let refuses = |rule: &Value| {
            let is_here = ["family", "table"]
                .iter()
                .all(|key| rule[*key] == chain[*key])
                && rule["chain"] == chain["name"];
            is_here && is_bare_refusal(rule)
        };
        if chain["policy"] == "drop" || objects(rules, "rule").any(refuses) {
            chains.extend(chain_path(chain, "name"));
        }
    }
    chains
}

/// Whether a rule refuses all that comes to it: `reject` or `drop` with nothing to match before it.
fn is_bare_refusal(rule: &Value) -> bool {
    let expressions = rule["expr"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let is_refusal =
        |expression: &Value| expression.get("drop").is_some() || expression.get("reject").is_some();
    expressions.iter().any(is_refusal)
        && expressions
            .iter()
            .all(|expression| expression.get("match").is_none())
}

/// `family table chain`, quoted where nft needs it; `None` for names that nft itself would not print so.
fn chain_path(object: &Value, chain: &str) -> Option<String> {
    let word = |key: &str| {
        let text = object[key].as_str()?;
        let is_plain = !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        is_plain.then_some(text)
    };
    Some(format!(
        "{} {} {}",
        word("family")?,
        word("table")?,
        word(chain)?
    ))
}

#[cfg(test)]
#[path = "firewall_tests.rs"]
mod tests;
