//! What is being taken down, beside the loop: the system's resolver may be slow to let go of the mesh's names.

use tokio::task::JoinHandle;

use super::Daemon;
use super::command::Answer;

/// Callers that wait for the end; more are answered at once.
const N_WAITING_MAX: usize = 64;

/// A session or overlay on its way down, and who waits for that.
pub(super) struct Ending {
    task: JoinHandle<()>,
    waiting: Vec<Answer<()>>,
}

impl Ending {
    pub(super) async fn done(&mut self) {
        note((&mut self.task).await);
    }
}

/// A task that broke is a fault of this program; what it held went away with it.
fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(err) = ended {
        tracing::error!(%err, "taking the overlay down broke off");
    }
}

impl Daemon {
    /// Takes the session down. A new one may start at once; its overlay waits until the old one is gone.
    pub(super) fn stop_session(&mut self) {
        self.view.send_replace(None);
        self.unused_key = None;
        if let Some(session) = self.session.take() {
            session.cancel();
            self.end(session.stop());
        }
    }

    /// Has something end beside the loop, after whatever is ending already.
    pub(super) fn end(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let (before, waiting) = match self.ending.take() {
            Some(Ending { task, waiting }) => (Some(task), waiting),
            None => (None, Vec::new()),
        };
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                note(before.await);
            }
            work.await;
        });
        self.ending = Some(Ending { task, waiting });
    }

    /// Answers when all that is going down is down.
    pub(super) fn answer_when_ended(&mut self, answer: Answer<()>) {
        match &mut self.ending {
            Some(ending) if ending.waiting.len() < N_WAITING_MAX => ending.waiting.push(answer),
            Some(_) | None => drop(answer.send(Ok(()))),
        }
    }

    pub(super) async fn on_ended(&mut self) {
        let waiting = self.ending.take().map(|ending| ending.waiting);
        for answer in waiting.into_iter().flatten() {
            // A caller that went away needs no answer.
            let _ = answer.send(Ok(()));
        }
        if self.session.as_ref().is_some_and(super::Session::has_map) {
            self.use_map().await;
        }
    }

    /// Waits for the end of all that is going down.
    pub(super) async fn wait_ended(&mut self) {
        if let Some(ending) = &mut self.ending {
            ending.done().await;
        }
    }
}
