//! `coordinator key`.

use coordinator::serve::now_ms;
use hyper::Method;
use mesh_proto::admin::{
    ApiKeyInfo, AuthKeyInfo, CreatedApiKey, CreatedAuthKey, NewApiKey, NewAuthKey,
};
use mesh_proto::id::Tag;

use super::segment;
use crate::args::{Access, KeyCommand};
use crate::client::{Client, Failure};
use crate::output::{done, json, json_list, line, note, table, when};

pub(crate) async fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Create {
            user,
            reusable,
            ephemeral,
            tags,
            ttl,
            access,
        } => {
            let asked = NewAuthKey {
                user,
                is_reusable: reusable,
                is_ephemeral: ephemeral,
                tags,
                ttl_seconds: ttl,
            };
            create(&access, &asked).await
        }
        KeyCommand::List(access) => list(&access).await,
        KeyCommand::Revoke { prefix, access } => {
            Client::new(&access)?
                .delete(&format!("/api/v1/auth-keys/{}", segment(bare(&prefix))))
                .await?;
            done(
                access.json,
                "Revoked. Nodes that joined by it stay; remove them with: coordinator node delete NAME",
            )
        }
        KeyCommand::ApiCreate { ttl, access } => {
            api_create(&access, &NewApiKey { ttl_seconds: ttl }).await
        }
        KeyCommand::ApiList(access) => api_list(&access).await,
        KeyCommand::ApiDelete { prefix, access } => {
            Client::new(&access)?
                .delete(&format!("/api/v1/api-keys/{}", segment(bare(&prefix))))
                .await?;
            done(access.json, "Deleted.")
        }
    }
}

/// The prefix, also when the whole key was pasted.
fn bare(text: &str) -> &str {
    let rest = text
        .strip_prefix("pxk_")
        .or_else(|| text.strip_prefix("pxa_"))
        .unwrap_or(text);
    rest.split('_').next().unwrap_or(rest)
}

async fn create(access: &Access, asked: &NewAuthKey) -> Result<(), Failure> {
    let created: CreatedAuthKey = Client::new(access)?
        .send(Method::POST, "/api/v1/auth-keys", asked)
        .await?;
    if access.json {
        return json(&created);
    }
    line(&created.key);
    let uses = if created.info.is_reusable {
        "any number of nodes"
    } else {
        "one node"
    };
    let ends = when(created.info.expires_at_ms, now_ms());
    let whose = if created.info.tags.is_empty() {
        format!("of {}", created.info.user)
    } else {
        let tags: Vec<&str> = created.info.tags.iter().map(Tag::as_str).collect();
        format!("with {}", tags.join(", "))
    };
    note(&format!(
        "For {uses} {whose}, ends {ends}. It is shown this once. On the node:"
    ));
    note("  meshctl up --auth-key KEY");
    Ok(())
}

async fn list(access: &Access) -> Result<(), Failure> {
    let keys: Vec<AuthKeyInfo> = Client::new(access)?.get("/api/v1/auth-keys").await?;
    if access.json {
        return json_list(&keys);
    }
    let now_ms = now_ms();
    let rows = keys.iter().map(|key| {
        let state = if key.is_revoked {
            "revoked"
        } else if !key.is_reusable && key.n_uses > 0 {
            "used"
        } else if key.expires_at_ms <= now_ms {
            "expired"
        } else {
            "good"
        };
        vec![
            key.prefix.clone(),
            key.user.to_string(),
            state.to_owned(),
            key.n_uses.to_string(),
            yes_no(key.is_reusable),
            yes_no(key.is_ephemeral),
            key.tags
                .iter()
                .map(Tag::as_str)
                .collect::<Vec<_>>()
                .join(" "),
            when(key.created_at_ms, now_ms),
            when(key.expires_at_ms, now_ms),
        ]
    });
    table(
        &[
            "PREFIX",
            "USER",
            "STATE",
            "USES",
            "REUSABLE",
            "EPHEMERAL",
            "TAGS",
            "CREATED",
            "ENDS",
        ],
        rows,
    );
    Ok(())
}

fn yes_no(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}

async fn api_create(access: &Access, asked: &NewApiKey) -> Result<(), Failure> {
    let created: CreatedApiKey = Client::new(access)?
        .send(Method::POST, "/api/v1/api-keys", asked)
        .await?;
    if access.json {
        return json(&created);
    }
    line(&created.key);
    note(&format!(
        "Ends {}. It is shown this once; keep it in a file of mode 0600.",
        when(created.info.expires_at_ms, now_ms())
    ));
    Ok(())
}

async fn api_list(access: &Access) -> Result<(), Failure> {
    let keys: Vec<ApiKeyInfo> = Client::new(access)?.get("/api/v1/api-keys").await?;
    if access.json {
        return json_list(&keys);
    }
    let now_ms = now_ms();
    let rows = keys.iter().map(|key| {
        let used = key
            .last_used_ms
            .map_or_else(|| "never".to_owned(), |at| when(at, now_ms));
        vec![
            key.prefix.clone(),
            when(key.created_at_ms, now_ms),
            when(key.expires_at_ms, now_ms),
            used,
        ]
    });
    table(&["PREFIX", "CREATED", "ENDS", "USED"], rows);
    Ok(())
}
