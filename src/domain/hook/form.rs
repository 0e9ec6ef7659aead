//! `application/x-www-form-urlencoded`, as the URL standard has it; and percent-encoding in paths.

use std::borrow::Cow;

use super::NotUnderstood;

/// A `%` without two hex digits after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a % that two hex digits do not follow")]
pub struct BadEncoding;

/// Decodes `%XX`; in a form `+` is a space too.
///
/// # Errors
/// At a `%` without two hex digits.
pub fn decode(text: &[u8], form: bool) -> Result<Cow<'_, [u8]>, BadEncoding> {
    if !text.iter().any(|b| *b == b'%' || (form && *b == b'+')) {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        decoded.push(match first {
            b'+' if form => b' ',
            b'%' => {
                let (digits, after) = rest.split_first_chunk::<2>().ok_or(BadEncoding)?;
                rest = after;
                let digit = |b: u8| char::from(b).to_digit(16).ok_or(BadEncoding);
                u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).map_err(|_| BadEncoding)?
            }
            plain => plain,
        });
    }
    Ok(Cow::Owned(decoded))
}

/// The JSON of a delivery: the body, or the field `payload` of the form that it is.
pub(super) fn payload(is_form: bool, body: &[u8]) -> Result<Cow<'_, [u8]>, NotUnderstood> {
    if !is_form {
        return Ok(Cow::Borrowed(body));
    }
    match field(body, "payload") {
        Ok(Some(json)) => Ok(json),
        Ok(None) => Err(NotUnderstood("the form has no field `payload`".into())),
        Err(broken) => Err(NotUnderstood(format!("the form is broken: {broken}"))),
    }
}

/// The first field of this name, decoded.
///
/// # Errors
/// When its encoding is broken.
pub fn field<'a>(form: &'a [u8], name: &str) -> Result<Option<Cow<'a, [u8]>>, BadEncoding> {
    let value = form.split(|b| *b == b'&').find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    value.map(|value| decode(value, true)).transpose()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let form = b"xpayload=no&payload=%7B%22a%22%3A+1%7d&payload=2";
        assert_eq!(&*field(form, "payload").unwrap().unwrap(), b"{\"a\": 1}");
        assert_eq!(field(form, "pay").unwrap(), None);
        assert_eq!(field(b"", "payload").unwrap(), None);
        for broken in [&b"p=%"[..], b"p=%4", b"p=%zz", b"p=%+1"] {
            assert_eq!(field(broken, "p"), Err(BadEncoding));
        }
    }

    #[test]
    fn a_plus_is_a_space_in_forms_alone() {
        assert_eq!(&*decode(b"a+b%2B", true).unwrap(), b"a b+");
        assert_eq!(&*decode(b"a+b%2b", false).unwrap(), b"a+b+");
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(bytes: Vec<u8>) {
            let encoded: String = bytes.iter().map(|b| format!("%{b:02x}")).collect();
            prop_assert_eq!(&*decode(encoded.as_bytes(), true).unwrap(), &bytes[..]);
        }
    }
}
