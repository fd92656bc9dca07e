//! Constants, each with where it comes from.

use std::time::Duration;

/// How often live sessions are looked at. boringtun's timers read the time of the last look, so it must be well under
/// a second.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// An initiator agrees on new keys when the old ones are this old. The WireGuard paper (section 6.1) says 120 s, and so
/// does boringtun's own timer, which must not come first: it is early by up to a tick and knows no tie-break.
pub(crate) const REKEY_AFTER: Duration = Duration::from_millis(119_250);

/// No packet is sealed with keys of this age (WireGuard paper, section 6.1).
pub(crate) const REJECT_AFTER: Duration = Duration::from_secs(180);

/// An initiator that only receives agrees on new keys at this age (wireguard-go, `keepKeyFreshReceiving`).
pub(crate) const REKEY_AFTER_RECEIVING: Duration = Duration::from_secs(180 - 10 - 5);

/// Keys are replaced after so many packets (wireguard-go, `RekeyAfterMessages`).
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;

/// And never used for more than so many (WireGuard paper, section 6.1).
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// Sessions agreed on within so long of each other, each begun by another end, are one renewal (one rekey timeout).
pub(crate) const TIE_WITHIN: Duration = Duration::from_secs(5);

/// A handshake is tried for so long (WireGuard paper, section 6.1).
pub(crate) const ATTEMPT_FOR: Duration = Duration::from_secs(90);

/// When a handshake without an answer is tried again. WireGuard says 5 s each time; the early ones make up for loss and
/// for a peer's path that opens late. The last is short of 5 s by more than the jitter: boringtun tries again by itself
/// after 5 s sharp, and then no two ends would be out of step.
pub(crate) const RETRY_AFTER: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_millis(4600),
];

/// A retry comes up to so much later, so that two ends do not collide for ever (wireguard-go, `RekeyTimeoutJitterMaxMs`).
pub(crate) const RETRY_JITTER_MS: u64 = 334;

/// Who was sent nothing for so long since it sent data gets an empty packet (WireGuard paper, section 6.5).
pub(crate) const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);

/// Data sent and nothing heard for so long: prove the path again (keepalive and rekey timeout together; WireGuard
/// paper, section 6.2).
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(15);

/// Answers to a peer's initiations that it may still confirm: as many as boringtun keeps sessions.
pub(crate) const N_ANSWERS: usize = 8;

/// A session that was never confirmed is forgotten after this.
pub(crate) const UNCONFIRMED_FOR: Duration = Duration::from_secs(15);

/// An authentic but old initiation is a copy or a replay while the peer was heard within this time. After it the peer may
/// have restarted with its clock set back.
pub(crate) const OLD_AFTER: Duration = Duration::from_secs(2);

/// And so often such a peer is met half way: whoever replays old initiations causes no more handshakes than this.
pub(crate) const OLD_EVERY: Duration = Duration::from_secs(10);

/// When the look at sessions is later than this, or a session was lost by boringtun's clock (which counts sleep) and
/// would live this long by the engine's, the machine slept or the program was stopped.
pub(crate) const SLEPT: Duration = Duration::from_secs(5);

/// A selected path within the LAN does not give way to one outside before it is silent for so long.
pub(crate) const LAN_HOLD: Duration = Duration::from_secs(5);

/// The most candidates that a handshake is sent to.
pub(crate) const N_CANDIDATES_MAX: usize = 8;

/// The most endpoints of a peer that are looked at.
pub(crate) const N_ENDPOINTS_MAX: usize = 32;

/// Packets that wait for a session, a peer; the oldest goes first when there are more.
pub(crate) const N_QUEUED_MAX: usize = 64;

/// A peer that was sent data and not heard for so long is sent TCP packets into silence, perhaps: they are kept. Twice
/// the round trip of nearly all paths, and before TCP's second retransmission (0.6 s).
pub(crate) const STASH_AFTER: Duration = Duration::from_millis(400);

/// So many are kept, a peer.
pub(crate) const N_STASHED_MAX: usize = 8;

/// And sent again at most so often by the same path.
pub(crate) const RESEND_EVERY: Duration = Duration::from_millis(500);

/// Bytes that wait for sessions, all peers together.
pub(crate) const QUEUED_BYTES_MAX: usize = 4 << 20;

/// Handshake messages a second from which on sources must prove their address and are limited (wireguard-go: an eighth
/// of a queue of 1,024).
pub(crate) const LOAD_FROM: u32 = 128;

/// A source's handshake messages a second under load (wireguard-go, `ratelimiter`).
pub(crate) const SOURCE_RATE: u32 = 20;

/// And how many may come at once (wireguard-go, `ratelimiter`).
pub(crate) const SOURCE_BURST: u32 = 5;

/// Sources that the limiter remembers.
pub(crate) const N_SOURCES_MAX: usize = 4096;

/// Handshake messages a second that are worked on in all: one costs up to 0.4 ms, so this leaves most of a core.
pub(crate) const HANDSHAKES_MAX: u32 = 600;

/// The most sessions at once; far below the 2^24 that boringtun's indices can name, so that a random one is soon free.
pub(crate) const N_INDICES_MAX: usize = 1 << 20;

/// How many packets a session may lag behind its newest one and still be opened, less one; boringtun's own number
/// (`N_WORDS * WORD_SIZE` of its `noise/session.rs`). The kernel and wireguard-go have 8,128.
#[cfg(test)]
pub(crate) const REPLAY_WINDOW: usize = 1024;

/// A packet is padded to a multiple of this (WireGuard paper, section 5.4.6).
pub(crate) const PAD_TO: usize = 16;

/// But not above this, what Ethernet carries: longer packets on links that take them would need a copy each. Path MTUs are
/// multiples of [`PAD_TO`], so that padding never makes a datagram too big for its path.
pub(crate) const PAD_UP_TO: usize = 1440;

/// What a path is taken to pass before it is asked: an overlay packet in a datagram that any IPv6 link passes, 1,280
/// bytes with all headers (RFC 8899, section 5.1.2: `BASE_PLPMTU`).
pub(crate) const MTU_BASE: u16 = 1200;

/// The shortest that is tried: 576 bytes of IPv4 are more than what any link in use fails to pass.
pub(crate) const MTU_MIN: u16 = 512;

/// Packets are cut no longer than that before the daemon says what the interfaces carry.
pub(crate) const MTU_MOST: u16 = 1440;

/// A length is asked for so often before it is taken not to pass (RFC 8899, section 5.1.2: `MAX_PROBES`).
pub(crate) const N_MTU_TRIES: u32 = 3;

/// Lengths that are asked for at once.
pub(crate) const N_MTU_PROBES: usize = 8;

/// A probe is waited for at least and at most so long, milliseconds.
pub(crate) const MTU_PATIENCE_MS: (u64, u64) = (250, 1250);

/// The length in use is asked for so often while data is sent.
pub(crate) const MTU_CHECK_EVERY: Duration = Duration::from_millis(750);

/// And so often in a row without an answer before it is taken to pass no longer.
pub(crate) const N_MTU_CHECKS: u32 = 3;

/// A path that loses at least this share of its probes has sparse packets sent twice: one loss among the last eleven.
pub(crate) const LOSSY_FROM: f32 = 0.02;

/// What may be sent twice to one peer: bytes a second, and at once after a while of none. A stream of tokens or a TCP
/// that waits for its retransmission fits in, bulk does not: a link that loses because it is full gets little more to carry.
pub(crate) const REPEATED_BYTES: (u32, u32) = (32 << 10, 16 << 10);

/// A search for more begins after this, doubled each time up to 16 minutes (RFC 8899, section 5.1.1: `PMTU_RAISE_TIMER`
/// is 600 s).
pub(crate) const MTU_RAISE_AFTER: Duration = Duration::from_secs(60);

/// How often the reflexive address is asked for while a session runs over the internet: NATs forget an idle UDP mapping
/// after 30 s at the soonest in practice (RFC 4787 REQ-5 asks for two minutes).
pub(crate) const STUN_ACTIVE: Duration = Duration::from_secs(25);

/// And how often otherwise.
pub(crate) const STUN_IDLE: Duration = Duration::from_secs(120);

/// And when a direct path fell silent, if the last round is this long past: a router that was started again maps anew.
pub(crate) const STUN_AGAIN: Duration = Duration::from_secs(2);

/// A STUN request without an answer is sent again after this (RFC 8489, section 6.2.1: 500 ms, doubled).
pub(crate) const STUN_RETRY: Duration = Duration::from_millis(500);

/// So often.
pub(crate) const N_STUN_TRIES: u32 = 4;

/// STUN servers that are asked.
pub(crate) const N_STUN_SERVERS_MAX: usize = 16;

/// Datagrams of unknown sessions that the engine is shown: one in so long is enough to find a peer that still uses a
/// session which this node lost by a restart, and too few to do harm.
pub(crate) const UNKNOWN_EVERY: Duration = Duration::from_millis(100);

/// Pings in flight.
pub(crate) const N_PINGS_MAX: usize = 1024;

/// A ping without an answer is forgotten after this.
pub(crate) const PING_FOR: Duration = Duration::from_secs(30);

/// Idle TCP flows are remembered for so many seconds; above the two hours of the kernel's keepalive.
pub(crate) const TCP_FLOW_S: u32 = 12 * 3600;

/// Idle UDP flows (netfilter's `nf_conntrack_udp_timeout_stream` is 120; WireGuard keys live 180).
pub(crate) const UDP_FLOW_S: u32 = 180;

/// Other flows: echo, and fragments behind an admitted first one.
pub(crate) const OTHER_FLOW_S: u32 = 30;

/// How often old flows are swept out.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// The engine is told so often, a peer, that a guided peer is heard from elsewhere.
pub(crate) const MOVE_TOLD_EVERY: Duration = Duration::from_millis(200);

/// Pauses between rounds of probes to all candidates while a peer is busy. The early ones open NATs from both ends
/// within two seconds, lost datagrams included; the last one looks for something better now and then.
pub(crate) const PROBE_ROUNDS: [Duration; 8] = [
    Duration::from_millis(200),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// The most candidates that a round asks.
pub(crate) const N_PROBED_MAX: usize = 16;

/// The most probes under way to a peer.
pub(crate) const N_PROBES_MAX: usize = 128;

/// A probe without an answer for so long is lost.
pub(crate) const PROBE_FOR: Duration = Duration::from_millis(1500);

/// A path that is sent data or probes and is silent for so long carries nothing, a slow one somewhat longer. TCP's
/// third retransmission comes 1.4 s after the first segment was lost: it should find the other path.
pub(crate) const DEAD_AFTER: Duration = Duration::from_millis(1000);

/// A path in doubt for so long gives way to any other that is proven.
pub(crate) const DOUBT_FOR: Duration = Duration::from_millis(450);

/// A path that died is asked so often whether it is back.
pub(crate) const REVIVE_EVERY: Duration = Duration::from_millis(500);

/// For so long; after that only the rounds ask.
pub(crate) const REVIVE_FOR: Duration = Duration::from_secs(120);

/// Deaths are counted within this time: a path that dies again and again must prove itself more than once.
pub(crate) const DEATHS_FOR: Duration = Duration::from_secs(60);

/// A proof of a path holds for so long where another path is to be left for it.
pub(crate) const FRESH_FOR: Duration = Duration::from_secs(4);

/// A selected path that is silent for so long is asked, which keeps NATs' mappings: they last 30 s at the least in
/// practice.
pub(crate) const REPROBE_EVERY: Duration = Duration::from_secs(15);

/// A peer that was sent or sent nothing for so long is not busy: only its selected path is kept.
pub(crate) const BUSY_FOR: Duration = Duration::from_secs(60);

/// A peer is asked to ping this node at most so often.
pub(crate) const CALL_EVERY: Duration = Duration::from_millis(180);

/// A path that was heard this lately needs no copies of a handshake elsewhere.
pub(crate) const SURE_FOR: Duration = Duration::from_secs(2);

/// Pings of a peer that are answered between two looks.
pub(crate) const N_PINGS_ANSWERED_MAX: u32 = 64;

/// Endpoints of its own that a node tells in a call-me-maybe.
pub(crate) const N_CALLED_MAX: usize = mesh_proto::disco::N_ENDPOINTS_MAX;

/// The most relays that are considered; the netmap names them best first.
pub(crate) const N_RELAYS_MAX: usize = mesh_proto::relay::N_RELAYS_MAX;

/// A home relay is chosen at the latest so long after the first netmap: until then latencies are waited for.
pub(crate) const HOME_WITHIN: Duration = Duration::from_millis(400);

/// A home relay without a link is left for another after this.
pub(crate) const HOME_GRACE: Duration = Duration::from_millis(1500);

/// A relay that failed is not made home again for so long, unless there is no other.
pub(crate) const RELAY_SHUNNED_FOR: Duration = Duration::from_secs(60);

/// A wanted link is asked for again after this.
pub(crate) const NEED_RELAY_EVERY: Duration = Duration::from_secs(2);

/// A peer that was heard by a relay is thought to listen there for so long.
pub(crate) const RELAY_HEARD_FOR: Duration = Duration::from_secs(60);

/// How long a port mapping is asked for (RFC 6886, section 3.3: two hours are recommended).
pub(crate) const MAP_LIFETIME_S: u32 = 7200;

/// The shortest and longest lifetime of a mapping that is believed.
pub(crate) const MAP_LIFETIMES_S: (u32, u32) = (120, 24 * 3600);

/// A gateway that does not answer is asked again after this, doubled each time (RFC 6886, section 3.1).
pub(crate) const MAP_RETRY: Duration = Duration::from_millis(250);

/// So often, by each protocol.
pub(crate) const N_MAP_TRIES: u32 = 4;

/// What the daemon does by UPnP is waited for so long.
pub(crate) const UPNP_WITHIN: Duration = Duration::from_secs(20);

/// A gateway that does not map is asked again after this.
pub(crate) const MAP_RETRY_LATER: Duration = Duration::from_secs(600);

/// A gateway that lost its memory makes this node ask anew at most so often.
pub(crate) const MAP_RENEW_MIN: Duration = Duration::from_secs(10);

/// Ports are guessed when so many rounds of probes found nothing.
pub(crate) const GUESS_AFTER_ROUNDS: usize = 4;

/// An attempt to guess lasts so long.
pub(crate) const GUESS_FOR: Duration = Duration::from_secs(15);

/// The next one comes after this, doubled each time.
pub(crate) const GUESS_AGAIN: Duration = Duration::from_secs(60);

/// And at the latest after this.
pub(crate) const GUESS_PAUSE_MAX: Duration = Duration::from_secs(1800);

/// Spare sockets that one attempt uses at most: 256 open ports make each guess hit with a probability of 1 in 252.
pub(crate) const N_SPARES_MAX: u16 = 256;

/// Spare sockets that ping in one step, a quarter of a second.
pub(crate) const N_SPARES_A_STEP: u32 = 64;

/// After so many steps the spare sockets ping again: what was open then may be closed.
pub(crate) const SPARES_AGAIN: u32 = 40;

/// Spare sockets without a use are kept for so long after the last step of an attempt.
pub(crate) const SPARES_KEPT_FOR: Duration = Duration::from_secs(5);

/// Ports that are guessed in one step.
pub(crate) const N_GUESSES_A_STEP: u32 = 25;

/// Peers for which ports are guessed at once: more wait for their turn, so that a node never sends more than so many
/// guesses.
pub(crate) const N_GUESSING_MAX: usize = 2;

/// Public endpoints of a peer at which ports are guessed, or to which spare sockets ping.
pub(crate) const N_GUESSED_MAX: usize = 2;
