//! `coordinator user`.

use coordinator::serve::now_ms;
use hyper::Method;
use mesh_proto::admin::{UserInfo, UserSpec};
use mesh_proto::id::UserName;

use super::segment;
use crate::args::{Access, UserCommand};
use crate::client::{Client, Failure};
use crate::output::{done, json, json_list, note, table, when};

const PATH: &str = "/api/v1/users";

pub(crate) async fn run(command: UserCommand) -> Result<(), Failure> {
    match command {
        UserCommand::Create { name, access } => {
            let user: UserInfo = Client::new(&access)?
                .send(Method::POST, PATH, &UserSpec { name })
                .await?;
            let next = format!(
                "Made {0}. An auth key for it: coordinator key create --user {0}",
                user.name
            );
            print(&access, &user, &next)
        }
        UserCommand::List(access) => list(&access).await,
        UserCommand::Rename {
            name,
            new_name,
            access,
        } => {
            let spec = UserSpec { name: new_name };
            let user: UserInfo = Client::new(&access)?
                .send(Method::PATCH, &path(&name), &spec)
                .await?;
            print(&access, &user, &format!("Renamed to {}.", user.name))
        }
        UserCommand::Delete { name, access } => {
            Client::new(&access)?.delete(&path(&name)).await?;
            done(access.json, "Deleted.")
        }
    }
}

fn path(name: &UserName) -> String {
    format!("{PATH}/{}", segment(name.as_str()))
}

fn print(access: &Access, user: &UserInfo, sentence: &str) -> Result<(), Failure> {
    if access.json {
        return json(user);
    }
    note(sentence);
    Ok(())
}

async fn list(access: &Access) -> Result<(), Failure> {
    let users: Vec<UserInfo> = Client::new(access)?.get(PATH).await?;
    if access.json {
        return json_list(&users);
    }
    let now_ms = now_ms();
    let rows = users.iter().map(|user| {
        vec![
            user.name.to_string(),
            user.n_nodes.to_string(),
            when(user.created_at_ms, now_ms),
            user.id.to_string(),
        ]
    });
    table(&["NAME", "NODES", "CREATED", "ID"], rows);
    Ok(())
}
