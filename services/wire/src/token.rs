//! Enrolment tokens: shown once, used once.
//!
//! Text: `ct1.` and base64url (no padding) of `address length u8 · address · CA fingerprint [32] ·
//! secret [32] · check [4]`, the check being the first bytes of the SHA-256 of all before it, so that a
//! token that was cut or mistyped is told from one that is not known. The vault stores only the SHA-256 of the secret.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use continuum_model::world::Entropy;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A token, in hand.
pub struct Token {
    /// Where the vault takes newcomers.
    pub address: String,
    /// By which the vault is known.
    pub ca_fingerprint: [u8; 32],
    secret: Zeroizing<[u8; 32]>,
}

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an enrolment token: it is cut or mistyped; copy it whole, from `ct1.` to its end, or make a new one"
)]
pub struct InvalidToken;

impl Token {
    /// A new one.
    pub fn make(address: &str, ca_fingerprint: [u8; 32], entropy: &mut dyn Entropy) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        entropy.fill(secret.as_mut());
        Self { address: address.chars().take(255).collect(), ca_fingerprint, secret }
    }

    /// What the vault stores, and compares.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_ref()).into()
    }

    /// What the newcomer is given. The only way to see the secret.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(vec![self.address.len() as u8]);
        bytes.extend_from_slice(self.address.as_bytes());
        bytes.extend_from_slice(&self.ca_fingerprint);
        bytes.extend_from_slice(self.secret.as_ref());
        let check = Sha256::digest(&*bytes);
        bytes.extend_from_slice(&check[..4]);
        Zeroizing::new(format!("ct1.{}", URL_SAFE_NO_PAD.encode(&*bytes)))
    }

    /// Reads a token.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let encoded =
            text.trim().strip_prefix("ct1.").filter(|rest| rest.len() < 1024).ok_or(InvalidToken)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| InvalidToken)?);
        let (body, check) = bytes.split_at_checked(bytes.len().saturating_sub(4)).ok_or(InvalidToken)?;
        if Sha256::digest(body)[..4] != *check {
            return Err(InvalidToken);
        }
        let (length, rest) = body.split_first().ok_or(InvalidToken)?;
        let (address, rest) = rest.split_at_checked(usize::from(*length)).ok_or(InvalidToken)?;
        let (fingerprint, secret) = rest.split_at_checked(32).ok_or(InvalidToken)?;
        Ok(Self {
            address: String::from_utf8(address.to_vec()).map_err(|_| InvalidToken)?,
            ca_fingerprint: fingerprint.try_into().map_err(|_| InvalidToken)?,
            secret: Zeroizing::new(secret.try_into().map_err(|_| InvalidToken)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::world::SystemEntropy;

    #[test]
    fn a_token_survives_its_text_and_every_typo_is_told() {
        let token = Token::make("127.0.0.1:4443", [9; 32], &mut SystemEntropy);
        let text = token.reveal();
        let read = Token::parse(&text).ok().unwrap();
        assert_eq!((read.address.as_str(), read.hash()), ("127.0.0.1:4443", token.hash()));
        for at in 4..text.len() {
            let mut typo = text.as_bytes().to_vec();
            typo[at] = if typo[at] == b'A' { b'B' } else { b'A' };
            assert!(Token::parse(std::str::from_utf8(&typo).unwrap()).is_err(), "typo at {at}");
            assert!(Token::parse(&text[..at]).is_err(), "cut at {at}");
        }
    }
}
