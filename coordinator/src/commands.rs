//! The commands.

pub(crate) mod health;
pub(crate) mod key;
pub(crate) mod manual;
pub(crate) mod node;
pub(crate) mod relay;
pub(crate) mod serve;
pub(crate) mod user;

/// A word in a path. Names and prefixes of ours need no escaping; anything else names nothing.
fn segment(word: &str) -> String {
    word.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~@+".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}
