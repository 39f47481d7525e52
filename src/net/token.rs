//! Join tokens and the admin API's bearer token.
//!
//! A join token is `evk1.<id>.<secret>.<ca fingerprint>`, each part in hex (8, 16 and 32 bytes). It is single-use, expires, and is
//! bound to a role. The coordinator stores [`TokenRecord`]s, which hold a hash of the secret only; marking a record used is its
//! compare-and-swap. The fingerprint lets the joiner recognise the cluster before it trusts anything.
//!
//! Invariants: secrets are compared in constant time; no secret appears in an error or in `Debug`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::identity::RoleKind;

const PREFIX: &str = "evk1";
const SECRET_CONTEXT: &str = "evenkeel 2026 join token secret v1";
const BEARER_CONTEXT: &str = "evenkeel 2026 api bearer token v1";

/// Why a join token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token's text.
    #[error("this is not a join token: it should read evk1.<id>.<secret>.<fingerprint>")]
    Malformed,
    /// No such id, or not its secret.
    #[error("this join token is unknown here: it was mistyped, or deleted")]
    Unknown,
    /// Too late.
    #[error("this join token expired {ago_seconds} s ago: make a new one with `evenkeel token create`")]
    Expired {
        /// Since when.
        ago_seconds: u64,
    },
    /// Single-use, and used.
    #[error("this join token was used already: make a new one with `evenkeel token create`")]
    Used,
    /// Made by another cluster.
    #[error("this join token belongs to another cluster")]
    OtherCluster,
}

/// A join token as its holder has it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: [u8; 16],
    ca_fingerprint: [u8; 32],
}

/// What the coordinator stores of a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public; names the token in lists.
    pub id: String,
    /// Hex of a BLAKE3 derived key.
    pub secret_hash: String,
    /// What its holder may become.
    pub role: RoleKind,
    /// From then on it is refused.
    pub expires_unix_seconds: u64,
    /// Whether it was redeemed.
    pub used: bool,
}

impl JoinToken {
    /// Makes a token and the record of it.
    pub fn mint(
        role: RoleKind,
        ca_fingerprint: [u8; 32],
        now_unix_seconds: u64,
        lifetime: Duration,
    ) -> (JoinToken, TokenRecord) {
        let id = hex::encode(rand::random::<[u8; 8]>());
        let token = JoinToken { id, secret: rand::random(), ca_fingerprint };
        let record = TokenRecord {
            id: token.id.clone(),
            secret_hash: token.secret_hash().to_string(),
            role,
            expires_unix_seconds: now_unix_seconds.saturating_add(lifetime.as_secs()),
            used: false,
        };
        (token, record)
    }

    /// Parses a token's text.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(text: &str) -> Result<JoinToken, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(id), Some(secret), Some(fingerprint), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let mut token = JoinToken { id: id.to_owned(), secret: [0; 16], ca_fingerprint: [0; 32] };
        let mut id_bytes = [0; 8];
        hex::decode_to_slice(id, &mut id_bytes).map_err(|_| TokenError::Malformed)?;
        hex::decode_to_slice(secret, &mut token.secret).map_err(|_| TokenError::Malformed)?;
        hex::decode_to_slice(fingerprint, &mut token.ca_fingerprint).map_err(|_| TokenError::Malformed)?;
        Ok(token)
    }

    /// Names the record.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The CA that the holder may trust.
    pub fn ca_fingerprint(&self) -> [u8; 32] {
        self.ca_fingerprint
    }

    /// The secret text: show it once, to its holder alone.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.id, hex::encode(self.secret), hex::encode(self.ca_fingerprint))
    }

    /// Whether this token may be redeemed: `record` is the one stored under [`JoinToken::id`], if any.
    ///
    /// # Errors
    /// It may not; the order of the checks tells a stranger without the secret nothing of a record.
    pub fn check(
        &self,
        record: Option<&TokenRecord>,
        ca_fingerprint: [u8; 32],
        now_unix_seconds: u64,
    ) -> Result<RoleKind, TokenError> {
        if self.ca_fingerprint != ca_fingerprint {
            return Err(TokenError::OtherCluster);
        }
        let record = record.filter(|r| r.id == self.id).ok_or(TokenError::Unknown)?;
        let stored = blake3::Hash::from_hex(&record.secret_hash).map_err(|_| TokenError::Unknown)?;
        if stored != self.secret_hash() {
            return Err(TokenError::Unknown); // `blake3::Hash` compares in constant time.
        }
        if record.used {
            return Err(TokenError::Used);
        }
        if now_unix_seconds >= record.expires_unix_seconds {
            return Err(TokenError::Expired { ago_seconds: now_unix_seconds - record.expires_unix_seconds });
        }
        Ok(record.role)
    }

    fn secret_hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key(SECRET_CONTEXT);
        hasher.update(self.id.as_bytes()).update(&self.secret);
        hasher.finalize()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret hidden)", self.id)
    }
}

/// The admin API's bearer token.
#[derive(Clone)]
pub struct BearerToken {
    text: String,
    hash: blake3::Hash,
}

impl BearerToken {
    /// 256 random bits.
    pub fn generate() -> BearerToken {
        BearerToken::from_text(&hex::encode(rand::random::<[u8; 32]>()))
    }

    /// A token read from a file; surrounding white space is dropped.
    pub fn from_text(text: &str) -> BearerToken {
        let text = text.trim().to_owned();
        let hash = bearer_hash(&text);
        BearerToken { text, hash }
    }

    /// The secret text.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Whether `presented` is this token, in constant time; an empty token matches nothing.
    pub fn matches(&self, presented: &str) -> bool {
        !self.text.is_empty() && self.hash == bearer_hash(presented)
    }

    /// Whether an `Authorization` header's value presents this token.
    pub fn matches_header(&self, value: &str) -> bool {
        value
            .split_once(' ')
            .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && self.matches(token.trim()))
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(hidden)")
    }
}

fn bearer_hash(text: &str) -> blake3::Hash {
    blake3::Hash::from_bytes(blake3::derive_key(BEARER_CONTEXT, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const CA: [u8; 32] = [7; 32];

    #[test]
    fn a_token_lives_from_mint_to_use() {
        let (token, mut record) = JoinToken::mint(RoleKind::Node, CA, 1000, HOUR);
        let presented = JoinToken::parse(&format!(" {}\n", token.reveal())).unwrap();
        assert_eq!(presented, token);
        assert_eq!(presented.check(Some(&record), CA, 1000), Ok(RoleKind::Node));
        assert_eq!(presented.check(Some(&record), CA, 4599), Ok(RoleKind::Node));
        assert_eq!(presented.check(Some(&record), CA, 4603), Err(TokenError::Expired { ago_seconds: 3 }));
        assert_eq!(presented.check(None, CA, 1000), Err(TokenError::Unknown));
        assert_eq!(presented.check(Some(&record), [8; 32], 1000), Err(TokenError::OtherCluster));
        record.used = true;
        assert_eq!(presented.check(Some(&record), CA, 1000), Err(TokenError::Used));
    }

    #[test]
    fn a_wrong_secret_is_unknown_even_if_used() {
        let (token, mut record) = JoinToken::mint(RoleKind::Node, CA, 1000, HOUR);
        let forged = JoinToken { secret: [0; 16], ..token };
        record.used = true;
        assert_eq!(forged.check(Some(&record), CA, 1000), Err(TokenError::Unknown));
        record.secret_hash = "damaged".to_owned();
        assert_eq!(forged.check(Some(&record), CA, 1000), Err(TokenError::Unknown));
    }

    #[test]
    fn only_tokens_parse() {
        let good = JoinToken::mint(RoleKind::Operator, CA, 0, HOUR).0.reveal();
        for n in 0..good.len() {
            assert_eq!(JoinToken::parse(&good[..n]), Err(TokenError::Malformed), "{n}");
        }
        for bad in [format!("{good}.x"), good.replace("evk1", "evk2"), format!("{good}00"), "é".repeat(80)] {
            assert_eq!(JoinToken::parse(&bad), Err(TokenError::Malformed), "{bad}");
        }
    }

    #[test]
    fn secrets_stay_out_of_records_and_debug() {
        let (token, record) = JoinToken::mint(RoleKind::Gateway, CA, 0, HOUR);
        let secret = hex::encode(token.secret);
        assert!(!format!("{token:?}").contains(&secret));
        let json = serde_json::to_string(&record).unwrap();
        assert!(!json.contains(&secret));
        assert_eq!(serde_json::from_str::<TokenRecord>(&json).unwrap(), record);
        let bearer = BearerToken::generate();
        assert!(!format!("{bearer:?}").contains(bearer.reveal()));
    }

    #[test]
    fn bearer_tokens_match_themselves_alone() {
        let token = BearerToken::generate();
        assert!(BearerToken::from_text(&format!("{}\n", token.reveal())).matches(token.reveal()));
        assert!(token.matches_header(&format!("Bearer {}", token.reveal())));
        assert!(!token.matches_header(token.reveal()));
        assert!(!token.matches_header("Bearer x"));
        assert!(!token.matches(""));
        assert!(!BearerToken::from_text("").matches(""), "an empty file opens nothing");
    }
}
