//! What the mesh would like to have shared, beside what this machine has.

use std::collections::BTreeSet;

use mesh_proto::control::Wanted;
use mesh_proto::local::{Suggestion, Suggestions};
use mesh_proto::name::normalise;

use crate::catalog::Catalog;
use crate::inventory::InventoryStatus;

/// Puts what others want beside what is known here: who shares it by now, and whether this machine has it.
pub(super) fn suggestions(
    wanted: Wanted,
    catalog: &Catalog,
    inventory: &InventoryStatus,
) -> Suggestions {
    let here: BTreeSet<String> = inventory
        .backends
        .iter()
        .flat_map(|backend| &backend.models)
        .map(|offer| normalise(&offer.model))
        .collect();
    let shared: BTreeSet<String> = inventory
        .shared
        .iter()
        .map(|shared| normalise(&shared.offer.model))
        .collect();
    let models = wanted.models.into_iter().map(|wanted| {
        let model = normalise(&wanted.model);
        let n_hosts = catalog
            .entries()
            .filter(|entry| entry.model == model)
            .map(|entry| entry.offers.len())
            .sum();
        Suggestion {
            n_users: wanted.n_users,
            asked_at_ms: wanted.asked_at_ms,
            n_hosts,
            is_here: here.contains(&model),
            is_shared: shared.contains(&model),
            model: wanted.model,
        }
    });
    Suggestions {
        models: models.collect(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::control::WantedModel;
    use mesh_proto::share::{BackendApi, Offer};

    use super::*;
    use crate::inventory::{Backend, Shared};

    #[test]
    fn what_is_wanted_stands_beside_what_is_here() {
        let wanted = |model: &str, n_users| WantedModel {
            model: model.to_owned(),
            n_users,
            asked_at_ms: 7,
        };
        let offer = |model: &str| Offer::new(model, BackendApi::Ollama);
        let inventory = InventoryStatus {
            backends: vec![Backend {
                url: String::new(),
                authority: String::new(),
                api: BackendApi::Ollama,
                models: vec![offer("tiny:latest").into(), offer("hidden:latest").into()],
                error: None,
                warning: None,
            }],
            shared: vec![Shared {
                offer: offer("tiny:latest").into(),
                authority: String::new(),
            }],
            ..InventoryStatus::default()
        };
        let wanted = Wanted {
            models: vec![wanted("tiny", 3), wanted("hidden", 2), wanted("far", 1)],
        };
        let told = suggestions(wanted, &Catalog::default(), &inventory);
        let told: Vec<_> = told
            .models
            .iter()
            .map(|model| (&*model.model, model.n_users, model.is_here, model.is_shared))
            .collect();
        assert_eq!(
            told,
            [
                ("tiny", 3, true, true),
                ("hidden", 2, true, false),
                ("far", 1, false, false)
            ]
        );
    }
}
