//! The published vectors, an independent implementation as oracle, and each rule of the text forms.

use postrider_signature::{
    KEYS_MAX, PublicKey, SecretError, Signer, SigningSecret, TOLERANCE_S_DEFAULT, TooManyKeys, Verifier,
    VerifyError,
};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use secrecy::ExposeSecret as _;

const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const TIME_S: i64 = 1_614_265_330;
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const ED25519: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";

fn secret(text: &str) -> SigningSecret {
    SigningSecret::parse(text).expect("a valid secret")
}

fn sign(texts: &[&str], id: &str, time_s: i64, body: &[u8]) -> String {
    Signer::new(texts.iter().map(|text| secret(text)))
        .expect("few keys")
        .sign(id, time_s, body)
}

#[test]
fn vectors() {
    assert_eq!(
        sign(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], ID, TIME_S, BODY),
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    );
    assert_eq!(
        sign(&[ED25519], ID, TIME_S, BODY),
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
    );
}

#[test]
fn every_key_signs_in_order() {
    let header = sign(&["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", ED25519], ID, TIME_S, BODY);
    assert_eq!(
        header,
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= \
         v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
    );
    assert_eq!(sign(&[], ID, TIME_S, BODY), "");
}

#[test]
fn the_number_of_keys_is_limited() {
    let key = secret(ED25519);
    assert_eq!(
        Signer::new(vec![key.clone(); KEYS_MAX])
            .expect("as many as allowed")
            .key_count(),
        KEYS_MAX
    );
    assert_eq!(Signer::new(std::iter::repeat(key)).map(|_| ()), Err(TooManyKeys));
}

#[test]
fn each_rule_of_the_text_has_its_error() {
    let cases = [
        ("", SecretError::Empty),
        ("whsec_", SecretError::Empty),
        ("whsk_", SecretError::Empty),
        (
            "whpk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            SecretError::PublicKeyGiven,
        ),
        (
            "sk_live_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            SecretError::UnknownPrefix,
        ),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!", SecretError::NotBase64),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw ", SecretError::NotBase64),
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLQ==",
            SecretError::SymmetricTooShort(22),
        ),
        (
            "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            SecretError::Ed25519Length(24),
        ),
        (
            "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvw==",
            SecretError::Ed25519Mismatch,
        ),
    ];
    for (text, error) in cases {
        assert_eq!(SigningSecret::parse(text), Err(error), "{text}");
    }
    assert_eq!(SigningSecret::parse(&"A".repeat(101)), Err(SecretError::TooLong));
    assert!(SigningSecret::parse(&"A".repeat(100)).is_ok());
    assert_eq!(
        SigningSecret::symmetric(&[7; 23]),
        Err(SecretError::SymmetricTooShort(23))
    );
    assert_eq!(
        SigningSecret::symmetric(&[7; 76]),
        Err(SecretError::SymmetricTooLong(76))
    );
    assert_eq!(PublicKey::parse("whsec_AAAA"), Err(SecretError::NotPublicKey));
    assert_eq!(PublicKey::parse("whpk_AAAA"), Err(SecretError::Ed25519Public));
}

#[test]
fn padding_and_prefix_do_not_change_the_key() {
    let bytes = [0xfb; 25];
    let padded = SigningSecret::symmetric(&bytes).expect("25 bytes").to_text();
    let padded = padded.expose_secret();
    assert!(padded.ends_with("=="));
    let bare = padded.trim_start_matches("whsec_").trim_end_matches('=');
    assert_eq!(secret(bare), secret(padded));
}

#[test]
fn nothing_shows_the_key() {
    for text in ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", ED25519] {
        let shown = format!("{:?} {:?}", secret(text), Signer::new([secret(text)]));
        assert!(!shown.contains("MfKQ") && !shown.contains("6Xb/"), "{shown}");
    }
}

#[test]
fn public_text_belongs_to_ed25519_only() {
    assert_eq!(secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").public_text(), None);
    let public = secret(ED25519)
        .public_text()
        .expect("an ed25519 key has a public half");
    assert_eq!(public, "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=");
    let verifier = Verifier::new([PublicKey::parse(&public).expect("its own text")]);
    let header = sign(&[ED25519], ID, TIME_S, BODY);
    assert_eq!(
        verifier.verify(ID, TIME_S, &header, BODY, TIME_S, TOLERANCE_S_DEFAULT),
        Ok(())
    );
}

#[test]
fn a_changed_part_does_not_verify() {
    let texts = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", ED25519];
    for text in texts {
        let verifier = Verifier::new([secret(text)]);
        let header = sign(&[text], ID, TIME_S, BODY);
        let verify = |id, time_s, header: &str, body| {
            verifier.verify(id, time_s, header, body, TIME_S, TOLERANCE_S_DEFAULT)
        };
        assert_eq!(verify(ID, TIME_S, &header, BODY), Ok(()));
        assert_eq!(
            verify(ID, TIME_S, &format!("v9,x v1,AAAA {header}"), BODY),
            Ok(())
        );
        assert_eq!(
            verify("msg_other", TIME_S, &header, BODY),
            Err(VerifyError::NoMatch)
        );
        assert_eq!(verify(ID, TIME_S + 1, &header, BODY), Err(VerifyError::NoMatch));
        assert_eq!(verify(ID, TIME_S, &header, b"{}"), Err(VerifyError::NoMatch));
        assert_eq!(
            verify(ID, TIME_S, "v9,AAAA nonsense", BODY),
            Err(VerifyError::NoSignature)
        );
        assert_eq!(verify(ID, TIME_S, "", BODY), Err(VerifyError::NoSignature));
    }
}

#[test]
fn time_outside_the_tolerance_is_refused() {
    let text = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let verifier = Verifier::new([secret(text)]);
    let header = sign(&[text], ID, TIME_S, BODY);
    let at = |now_s| verifier.verify(ID, TIME_S, &header, BODY, now_s, 300);
    assert_eq!(at(TIME_S + 300), Ok(()));
    assert_eq!(at(TIME_S - 300), Ok(()));
    assert_eq!(
        at(TIME_S + 301),
        Err(VerifyError::TooOld {
            age_s: 301,
            tolerance_s: 300
        })
    );
    assert_eq!(
        at(TIME_S - 301),
        Err(VerifyError::TooNew {
            ahead_s: 301,
            tolerance_s: 300
        })
    );
    assert!(
        verifier
            .verify(ID, i64::MIN, &header, BODY, i64::MAX, 300)
            .is_err()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_independent_implementation_agrees(
        key in proptest::collection::vec(any::<u8>(), 24..=75),
        id in "[a-zA-Z0-9_]{1,40}",
        time_s in 0..4_000_000_000_i64,
        body in "\\PC{0,200}",
    ) {
        let ours = SigningSecret::symmetric(&key).expect("24 to 75 bytes");
        let oracle = standardwebhooks::Webhook::new(ours.to_text().expose_secret()).expect("our text");
        let header = Signer::new([ours]).expect("one key").sign(&id, time_s, body.as_bytes());
        prop_assert_eq!(header, oracle.sign(&id, time_s, body.as_bytes()).expect("the oracle signs"));
    }

    #[test]
    fn what_is_signed_verifies_with_each_key_alone(
        seed in any::<u64>(),
        time_s in any::<i64>(),
        body in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let keys = [
            SigningSecret::generate_symmetric(&mut rng),
            SigningSecret::generate_ed25519(&mut rng),
            SigningSecret::generate_symmetric(&mut rng),
        ];
        let header = Signer::new(keys.clone()).expect("three keys").sign("msg_1", time_s, &body);
        for key in keys {
            prop_assert_eq!(&secret(key.to_text().expose_secret()), &key);
            let verifier = Verifier::new([key]);
            prop_assert_eq!(verifier.verify("msg_1", time_s, &header, &body, time_s, 0), Ok(()));
        }
        let stranger = Verifier::new([SigningSecret::generate_symmetric(&mut rng)]);
        prop_assert_eq!(
            stranger.verify("msg_1", time_s, &header, &body, time_s, 0),
            Err(VerifyError::NoMatch)
        );
    }
}
