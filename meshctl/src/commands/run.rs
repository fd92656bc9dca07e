//! `run`: a chat with a model, with nothing installed but this program.

use std::fmt;
use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::time::{Duration, Instant};

use mesh_proto::control::code;
use mesh_proto::local::{Models, NodeStatus, PATH_MODELS, PATH_STATUS, RunState, Status};
use mesh_proto::name::{self, ModelParts};
use owo_colors::OwoColorize as _;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::RunArgs;
use crate::chat::{Chunk, Gateway, Message, Reply};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::near::{did_you_mean, near};
use crate::output::{Output, clean};

/// More text than this is no prompt.
const STDIN_LEN_MAX: u64 = 8 * 1024 * 1024;
const STDIN_HINT_AFTER: Duration = Duration::from_secs(2);
const PROMPT: &str = ">>> ";

#[derive(Debug, Default, Serialize)]
struct Answer {
    model: String,
    host: Option<String>,
    text: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    done_reason: Option<String>,
    n_prompt_tokens: Option<u64>,
    n_answer_tokens: Option<u64>,
    duration_ms: u64,
}

pub(super) async fn run(args: RunArgs, client: &Client, output: &Output) -> Result<Exit, Failure> {
    let is_interactive =
        args.prompt.is_empty() && std::io::stdin().is_terminal() && !output.is_json();
    let prompt = if is_interactive {
        None
    } else {
        Some(read_prompt(&args.prompt, output).await?)
    };
    let node = running_node(client).await?;
    let chat = Chat {
        gateway: Gateway::of(&node),
        model: args.model,
        is_streaming: !args.no_stream && !output.is_json(),
        is_terminal: std::io::stdout().is_terminal(),
        client,
        output,
    };
    let mut history: Vec<Message> = args.system.map(Message::system).into_iter().collect();
    let Some(prompt) = prompt else {
        chat.check_model().await?;
        return chat.converse(history).await;
    };
    history.push(Message::user(prompt));
    let mut answer = Answer::default();
    chat.ask(&history, &mut answer).await?;
    if output.is_json() {
        output.json(&answer)?;
    }
    Ok(Exit::Done)
}

async fn running_node(client: &Client) -> Result<NodeStatus, Failure> {
    let status: Status = client.get(PATH_STATUS).await?;
    let words = super::status::state_words(status.state);
    match (status.state, status.node) {
        (RunState::Running, Some(node)) => Ok(node),
        (RunState::NeedsLogin | RunState::Refused, _) => {
            Err(Failure::new(Exit::NeedsLogin, code::NEEDS_LOGIN, words).with_login_fix())
        }
        (RunState::Stopped, _) => {
            Err(Failure::new(Exit::Degraded, code::UNAVAILABLE, words).with_fix("meshctl up"))
        }
        (RunState::Starting | RunState::Running, _) => {
            Err(Failure::new(Exit::Degraded, code::UNAVAILABLE, words).with_fix("meshctl wait"))
        }
    }
}

/// The prompt of the command line, and what is piped in behind it.
async fn read_prompt(words: &[String], output: &Output) -> Result<String, Failure> {
    let mut prompt = words.join(" ");
    if is_piped() {
        let mut reading = tokio::task::spawn_blocking(|| {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .take(STDIN_LEN_MAX + 1)
                .read_to_string(&mut text)
                .map(|_| text)
        });
        let read = tokio::select! {
            read = &mut reading => read,
            () = tokio::time::sleep(STDIN_HINT_AFTER) => {
                output.hint("reading the rest of the prompt from standard input (with </dev/null there is none)");
                reading.await
            }
        };
        let text = read
            .map_err(|err| Failure::failed(err.to_string()))?
            .map_err(|err| {
                Failure::usage(format!("cannot read the prompt from standard input: {err}"))
            })?;
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > STDIN_LEN_MAX {
            return Err(Failure::usage(
                "the text on standard input is longer than 8 MiB: no model takes that",
            ));
        }
        if !prompt.is_empty() && !text.trim().is_empty() {
            prompt.push_str("\n\n");
        }
        prompt.push_str(text.trim_end());
    }
    if prompt.trim().is_empty() {
        return Err(Failure::usage("there is nothing to ask")
            .with_fix("meshctl run MODEL \"why is the sky blue?\""));
    }
    Ok(prompt)
}

/// Whether standard input is a file, a pipe or a socket; a terminal or `/dev/null` is not.
fn is_piped() -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata("/proc/self/fd/0").is_ok_and(|found| {
        let kind = found.file_type();
        kind.is_file() || kind.is_fifo() || kind.is_socket()
    })
}

struct Chat<'a> {
    gateway: Gateway,
    model: String,
    is_streaming: bool,
    is_terminal: bool,
    client: &'a Client,
    output: &'a Output,
}

impl fmt::Debug for Chat<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chat")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl Chat<'_> {
    /// Puts one conversation to the model; what has come of the answer is in `answer` however this ends.
    async fn ask(&self, history: &[Message], answer: &mut Answer) -> Result<(), Failure> {
        let begun = Instant::now();
        answer.model.clone_from(&self.model);
        let asking = self.gateway.chat(&self.model, history);
        let mut reply = match self
            .output
            .during(&format!("waiting for {}", self.model), asking)
            .await
        {
            Ok(reply) => reply,
            Err(failure) if failure.exit == Exit::NotFound => {
                return Err(self.unknown_model().await);
            }
            Err(failure) => return Err(failure),
        };
        answer.host = reply.host().map(str::to_owned);
        if let Some(host) = reply.host() {
            self.output
                .detail(&format!("{} answers from {}", self.model, clean(host)));
        }
        let mut is_thinking = false;
        while let Some(chunk) = self.next(&mut reply, answer).await? {
            if self.is_streaming {
                is_thinking = self.show(&chunk, is_thinking)?;
            }
            answer.thinking.push_str(chunk.thinking());
            answer.text.push_str(chunk.text());
            if chunk.done {
                answer.done_reason = chunk.done_reason;
                answer.n_prompt_tokens = chunk.prompt_eval_count;
                answer.n_answer_tokens = chunk.eval_count;
            }
        }
        answer.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.output.is_json() {
            return Ok(());
        }
        if !self.is_streaming {
            self.text(&answer.text)?;
        }
        if !answer.text.ends_with('\n') {
            self.output.print("\n")?;
        }
        Ok(())
    }

    /// The next piece; an answer that breaks off ends its line before the error is told.
    async fn next(&self, reply: &mut Reply, answer: &Answer) -> Result<Option<Chunk>, Failure> {
        let next = reply.next().await;
        if next.is_err() && self.is_streaming && !answer.text.is_empty() {
            self.output.print("\n")?;
        }
        next
    }

    /// Prints a piece; returns whether the model is still thinking.
    fn show(&self, chunk: &Chunk, was_thinking: bool) -> Result<bool, Failure> {
        let mut is_thinking = was_thinking;
        // Thoughts are for those who watch; a program that reads the answer wants the answer.
        if !chunk.thinking().is_empty() && self.is_terminal {
            self.output
                .print(&clean(chunk.thinking()).dimmed().to_string())?;
            is_thinking = true;
        }
        if !chunk.text().is_empty() {
            if is_thinking {
                self.output.print("\n\n")?;
                is_thinking = false;
            }
            self.text(chunk.text())?;
        }
        Ok(is_thinking)
    }

    /// A host must not steer a terminal; a pipe gets every byte.
    fn text(&self, text: &str) -> Result<(), Failure> {
        if self.is_terminal {
            self.output.print(&clean(text))
        } else {
            self.output.print_raw(text.as_bytes())
        }
    }

    async fn models(&self) -> Models {
        self.client.get(PATH_MODELS).await.unwrap_or_default()
    }

    async fn check_model(&self) -> Result<(), Failure> {
        let models = self.models().await;
        if models
            .models
            .iter()
            .any(|known| is_meant(&self.model, &known.model, known.digest.as_ref()))
        {
            return Ok(());
        }
        Err(self.unknown(&models))
    }

    async fn unknown_model(&self) -> Failure {
        self.unknown(&self.models().await)
    }

    fn unknown(&self, models: &Models) -> Failure {
        let names = near(
            &self.model,
            models.models.iter().map(|known| known.model.as_str()),
        );
        let words = match did_you_mean(&names) {
            Some(words) => format!("; {words}"),
            None if models.models.is_empty() => {
                ": nobody shares a model with this node yet".to_owned()
            }
            None => String::new(),
        };
        let failure = Failure::not_found(format!(
            "no host serves `{}` to this node{words}",
            self.model
        ));
        match names.first() {
            Some(name) => failure.with_fix(format!("meshctl run {name}")),
            None => failure.with_fix_note("meshctl models", "lists what there is"),
        }
    }

    /// A conversation on a terminal, until Ctrl-D or `/bye`.
    async fn converse(&self, system: Vec<Message>) -> Result<Exit, Failure> {
        let mut interrupts =
            signal(SignalKind::interrupt()).map_err(|err| Failure::failed(err.to_string()))?;
        let mut lines = read_lines();
        let mut history = system.clone();
        self.output.hint(
            "Ctrl-C stops an answer, /clear forgets the conversation, /bye or Ctrl-D ends it",
        );
        loop {
            self.output.prompt(PROMPT);
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = interrupts.recv() => {
                    self.output.hint("\nto leave: Ctrl-D or /bye");
                    continue;
                }
            };
            let Some(line) = line else {
                self.output.note("");
                return Ok(Exit::Done);
            };
            match line.trim() {
                "" => {}
                "/bye" | "/exit" | "/quit" => return Ok(Exit::Done),
                "/clear" => {
                    history.clone_from(&system);
                    self.output.hint("the conversation is forgotten");
                }
                "/?" | "/help" => self.output.hint(
                    "/clear forgets the conversation, /bye ends it; all else goes to the model",
                ),
                words => {
                    history.push(Message::user(words));
                    self.turn(&mut history, &mut interrupts).await?;
                }
            }
        }
    }

    async fn turn(
        &self,
        history: &mut Vec<Message>,
        interrupts: &mut Signal,
    ) -> Result<(), Failure> {
        let mut answer = Answer::default();
        let asked = {
            let asking = self.ask(history, &mut answer);
            tokio::select! {
                asked = asking => Some(asked),
                _ = interrupts.recv() => None,
            }
        };
        match asked {
            Some(Ok(())) => history.push(Message::assistant(answer.text)),
            Some(Err(failure)) if failure.is_closed_pipe() => return Err(failure),
            // The conversation survives a host that fails: the same words can be sent again.
            Some(Err(failure)) => {
                self.output.failure(&failure);
                history.pop();
            }
            None => {
                self.output.hint("\n(stopped)");
                if answer.text.is_empty() {
                    history.pop();
                } else {
                    history.push(Message::assistant(answer.text));
                }
            }
        }
        Ok(())
    }
}

/// Reads lines on a thread of its own: a blocking read cannot be cancelled.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Whether a name may stand for a model of the catalogue, as the gateway takes names.
fn is_meant(asked: &str, known: &str, digest: Option<&mesh_proto::share::Digest>) -> bool {
    let (asked, known) = (name::normalise(asked), name::normalise(known));
    let parts = ModelParts::of(&known);
    asked == known
        || asked == parts.base
        || asked == parts.short
        || name::slug(&known).is_some_and(|slug| slug == asked)
        || digest.is_some_and(|digest| digest.short() == asked)
}
