//! One DNS message in, one out: what is ignored, what is refused, and how long an answer may be. Pure.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;

use super::zone::Reply;

/// The longest datagram that passes every path unfragmented (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
const UDP_PAYLOAD_PLAIN: u16 = 512;
const HEADER_LEN: usize = 12;

/// How a message came, and so how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream.
    Tcp,
}

/// A question that may be answered.
#[derive(Debug, Clone)]
pub struct Question {
    request: Message,
    transport: Transport,
}

/// What a received message is.
#[derive(Debug)]
pub enum Received {
    /// A question.
    Question(Box<Question>),
    /// Something that is answered by a refusal: these bytes.
    Refused(Vec<u8>),
    /// Something that gets no answer.
    Ignored,
}

/// Reads a message.
///
/// Responses are ignored, so that two servers can never talk to each other for ever (RUSTSEC-2023-0041); so is what no
/// resolver sends: several questions, other classes than IN.
#[must_use]
pub fn receive(bytes: &[u8], transport: Transport) -> Received {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Received::Ignored;
    };
    let [id0, id1, flags, _, n0, n1, ..] = *header;
    let is_response = flags & 0x80 != 0;
    if is_response || u16::from_be_bytes([n0, n1]) != 1 {
        return Received::Ignored;
    }
    let id = u16::from_be_bytes([id0, id1]);
    let op_code = OpCode::from_u8((flags >> 3) & 0xf);
    if op_code != OpCode::Query {
        return refuse(id, op_code, ResponseCode::NotImp);
    }
    let Ok(request) = Message::from_vec(bytes) else {
        return refuse(id, op_code, ResponseCode::FormErr);
    };
    if request.queries.len() != 1
        || request
            .queries
            .iter()
            .any(|query| query.query_class() != DNSClass::IN)
    {
        return Received::Ignored;
    }
    let question = Question { request, transport };
    if question
        .request
        .edns
        .as_ref()
        .is_some_and(|edns| edns.version() > 0)
    {
        return Received::Refused(question.error(ResponseCode::BADVERS));
    }
    Received::Question(Box::new(question))
}

fn refuse(id: u16, op_code: OpCode, code: ResponseCode) -> Received {
    Message::error_msg(id, op_code, code)
        .to_vec()
        .map_or(Received::Ignored, Received::Refused)
}

impl Question {
    /// What is asked.
    #[must_use]
    pub fn query(&self) -> &Query {
        // `receive` makes questions of exactly one query.
        &self.request.queries[0]
    }

    /// Whether the asker wants names of others looked up.
    #[must_use]
    pub const fn wants_recursion(&self) -> bool {
        self.request.metadata.recursion_desired
    }

    /// How it came.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// The request to send on, under another id; the caller puts the id back into the answer.
    #[must_use]
    pub fn forwarded(&self, id: u16) -> Option<Vec<u8>> {
        let mut request = self.request.clone();
        request.metadata.id = id;
        request.to_vec().ok()
    }

    /// The id that the answer must carry.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.request.metadata.id
    }

    /// The bytes of an answer with authority.
    #[must_use]
    pub fn answer(&self, reply: Reply) -> Vec<u8> {
        let mut message = self.response(reply.code);
        message.metadata.authoritative = true;
        message.answers = reply.answers;
        message.authorities = reply.authorities;
        message.additionals = reply.additionals;
        self.encode(message)
    }

    /// The bytes of an answer that is an error alone.
    #[must_use]
    pub fn error(&self, code: ResponseCode) -> Vec<u8> {
        self.encode(self.response(code))
    }

    /// The bytes of an upstream's answer, its own header flags kept.
    #[must_use]
    pub fn relay(&self, mut answer: Message) -> Vec<u8> {
        answer.metadata.id = self.id();
        answer.metadata.recursion_available = true;
        self.encode(answer)
    }

    fn response(&self, code: ResponseCode) -> Message {
        let asked = &self.request.metadata;
        let mut message = Message::new(asked.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = asked.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query().clone());
        if self.request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD);
            message.set_edns(edns);
        }
        message
    }

    /// The longest answer that the asker takes.
    #[must_use]
    pub fn len_max(&self) -> usize {
        match (self.transport, &self.request.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => usize::from(UDP_PAYLOAD_PLAIN),
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.max_payload().clamp(UDP_PAYLOAD_PLAIN, UDP_PAYLOAD))
            }
        }
    }

    /// What does not fit is cut to the question with the flag that says so: the asker comes back by TCP.
    fn encode(&self, mut message: Message) -> Vec<u8> {
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= self.len_max() => return bytes,
            Ok(_) if !message.additionals.is_empty() => {
                message.additionals.clear();
                return self.encode(message);
            }
            Ok(_) => message = message.truncate(),
            Err(_) => message = self.response(ResponseCode::ServFail),
        }
        message.to_vec().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
