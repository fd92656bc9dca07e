//! What is ignored, refused and cut.

use std::str::FromStr;

use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::TXT};
use proptest::prelude::*;

use super::*;

fn query() -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(
        Name::from_ascii("LLama3.proxima.").unwrap(),
        RecordType::TXT,
    ));
    message
}

fn question(message: &Message, transport: Transport) -> Question {
    let received = receive(&message.to_vec().unwrap(), transport);
    let Received::Question(question) = received else {
        panic!("{received:?}")
    };
    *question
}

fn long_reply(n: usize) -> Reply {
    let name = Name::from_str("llama3.proxima.").unwrap();
    let record = Record::from_rdata(name, 5, RData::TXT(TXT::new(vec!["x".repeat(200)])));
    Reply {
        code: ResponseCode::NoError,
        answers: vec![record; n],
        authorities: vec![],
        additionals: vec![],
    }
}

#[test]
fn responses_and_strange_questions_get_no_answer() {
    let ignored = |message: &Message| {
        matches!(
            receive(&message.to_vec().unwrap(), Transport::Udp),
            Received::Ignored
        )
    };
    let mut response = query();
    response.metadata.message_type = MessageType::Response;
    assert!(ignored(&response));
    let mut two = query();
    two.add_query(query().queries[0].clone());
    assert!(ignored(&two));
    let mut none = query();
    none.queries.clear();
    assert!(ignored(&none));
    let mut chaos = query();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert!(ignored(&chaos));
    assert!(matches!(
        receive(&[0; 11], Transport::Udp),
        Received::Ignored
    ));
}

#[test]
fn other_operations_and_versions_are_refused() {
    let refusal = |message: &Message| {
        let received = receive(&message.to_vec().unwrap(), Transport::Udp);
        let Received::Refused(bytes) = received else {
            panic!("{received:?}")
        };
        Message::from_vec(&bytes).unwrap()
    };
    let mut update = query();
    update.metadata.op_code = OpCode::Update;
    assert_eq!(
        refusal(&update).metadata.response_code,
        ResponseCode::NotImp
    );
    let mut newer = query();
    newer.set_edns(Edns::new().set_version(1).clone());
    let answer = refusal(&newer);
    assert_eq!(
        (answer.metadata.id, answer.edns.unwrap().rcode_high()),
        (7, 1)
    );
}

#[test]
fn an_answer_fits_its_transport() {
    let mut with_edns = query();
    with_edns.set_edns(Edns::new().set_max_payload(4096).clone());
    for (message, transport, n, fits) in [
        (query(), Transport::Udp, 1, true),
        (query(), Transport::Udp, 4, false),
        (with_edns.clone(), Transport::Udp, 4, true),
        (with_edns.clone(), Transport::Udp, 8, false),
        (query(), Transport::Tcp, 100, true),
    ] {
        let question = question(&message, transport);
        let bytes = question.answer(long_reply(n));
        assert!(bytes.len() <= question.len_max());
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.truncation, !fits);
        assert_eq!(answer.answers.len(), if fits { n } else { 0 });
        assert_eq!(answer.queries, message.queries);
        assert_eq!(answer.edns.is_some(), message.edns.is_some());
        assert!(answer.metadata.authoritative);
    }
}

#[test]
fn an_answer_repeats_the_question_letter_by_letter() {
    let bytes = question(&query(), Transport::Udp).answer(long_reply(1));
    assert!(bytes.windows(6).any(|window| window == b"LLama3"));
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = receive(&bytes, Transport::Udp);
    }

    #[test]
    fn no_damage_to_a_question_breaks_the_reader(at in 0_usize..64, byte in any::<u8>()) {
        let mut bytes = query().to_vec().unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Received::Question(question) = receive(&bytes, Transport::Udp) {
            prop_assert!(question.answer(long_reply(9)).len() <= question.len_max());
        }
    }
}
