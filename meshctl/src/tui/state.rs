//! What `meshctl top` knows: two looks at the hosts, and what came out between them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::id::NodeId;
use mesh_proto::local::{Top, TopHost};
use serde::Serialize;

/// A host, with its pace since the look before.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) host: TopHost,
    /// Output tokens a second; absent at the first look, and when the host began to count anew.
    pub(crate) tokens_per_second: Option<f64>,
}

/// What the table is sorted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    Name,
    Requests,
    Tokens,
}

impl Order {
    const fn next(self) -> Self {
        match self {
            Self::Name => Self::Requests,
            Self::Requests => Self::Tokens,
            Self::Tokens => Self::Name,
        }
    }

    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Requests => "requests",
            Self::Tokens => "tokens/s",
        }
    }
}

/// The hosts as they are shown.
#[derive(Debug, Default)]
pub(crate) struct State {
    rows: Vec<Row>,
    counted: BTreeMap<NodeId, u64>,
    order: Order,
    /// Why the last look failed.
    pub(crate) trouble: Option<String>,
}

impl State {
    /// Takes in a new look, so long after the one before.
    pub(crate) fn take(&mut self, top: Top, since: Duration) {
        let mut counted = BTreeMap::new();
        self.rows = top
            .hosts
            .into_iter()
            .map(|host| {
                let now = host.live.as_ref().map(|live| live.n_output_tokens);
                let before = self.counted.get(&host.id).copied();
                if let Some(now) = now {
                    counted.insert(host.id, now);
                }
                let made = now
                    .zip(before)
                    .and_then(|(now, before)| now.checked_sub(before));
                let seconds = since.as_secs_f64();
                let tokens_per_second = made
                    .filter(|_| seconds > 0.0)
                    .map(|made| (made as f64 / seconds * 10.0).round() / 10.0);
                Row {
                    host,
                    tokens_per_second,
                }
            })
            .collect();
        self.counted = counted;
        self.trouble = None;
    }

    pub(crate) fn sort_by_next(&mut self) {
        self.order = self.order.next();
    }

    pub(crate) const fn order(&self) -> Order {
        self.order
    }

    /// The hosts in the order asked for; those with one figure by name.
    pub(crate) fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| {
            let by = match self.order {
                Order::Name => std::cmp::Ordering::Equal,
                Order::Requests => load(b).cmp(&load(a)),
                Order::Tokens => {
                    let pace = |row: &Row| row.tokens_per_second.unwrap_or(-1.0);
                    pace(b).total_cmp(&pace(a))
                }
            };
            by.then_with(|| a.host.name.cmp(&b.host.name))
        });
        rows
    }

    /// All hosts together.
    pub(crate) fn sum(&self) -> Sum {
        let mut sum = Sum {
            n_hosts: self.rows.len(),
            ..Sum::default()
        };
        for row in &self.rows {
            let Some(live) = &row.host.live else { continue };
            sum.n_online += usize::from(row.host.is_online);
            sum.n_active = sum.n_active.saturating_add(live.n_active);
            sum.n_queued = sum.n_queued.saturating_add(live.n_queued);
            sum.n_slots = sum.n_slots.saturating_add(live.n_slots);
            sum.n_gpus += live.gpus.len();
            sum.tokens_per_second += row.tokens_per_second.unwrap_or(0.0);
        }
        sum
    }
}

fn load(row: &Row) -> u32 {
    let live = row.host.live.as_ref();
    live.map_or(0, |live| live.n_active.saturating_add(live.n_queued))
}

/// All hosts together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Sum {
    pub(crate) n_hosts: usize,
    pub(crate) n_online: usize,
    pub(crate) n_slots: u32,
    pub(crate) n_active: u32,
    pub(crate) n_queued: u32,
    pub(crate) n_gpus: usize,
    pub(crate) tokens_per_second: f64,
}
