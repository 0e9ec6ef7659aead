//! Single texts out of a JSON body of any shape, without keeping the rest of it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A longer text is none that anybody looks for.
const LONGEST: usize = 4096;

/// What stands at each of these places: keys of objects and indexes of lists, from the outside in.
/// Numbers are given as text; a list, an object or null is nothing.
///
/// # Errors
/// When the body is no JSON.
pub(super) fn pick<S: AsRef<str>>(body: &[u8], places: &[&[S]]) -> serde_json::Result<Vec<Option<String>>> {
    let mut found = vec![None; places.len()];
    let mut json = serde_json::Deserializer::from_slice(body);
    Below { places, depth: 0, alive: (0..places.len()).collect(), found: &mut found }.deserialize(&mut json)?;
    json.end()?;
    Ok(found)
}

/// A value that the first `depth` steps of the places in `alive` lead to.
struct Below<'p, S> {
    places: &'p [&'p [S]],
    depth: usize,
    alive: Vec<usize>,
    found: &'p mut [Option<String>],
}

impl<S: AsRef<str>> Below<'_, S> {
    /// One step further; `None`: no place lies there.
    fn step(&mut self, key: &str) -> Option<Below<'_, S>> {
        let leads = |i: &usize| self.places[*i].get(self.depth).is_some_and(|part| part.as_ref() == key);
        let alive: Vec<usize> = self.alive.iter().copied().filter(leads).collect();
        let (places, depth) = (self.places, self.depth + 1);
        (!alive.is_empty()).then_some(Below { places, depth, alive, found: self.found })
    }

    fn take(self, text: &str) {
        if text.len() <= LONGEST {
            for i in self.alive.into_iter().filter(|i| self.places[*i].len() == self.depth) {
                self.found[i] = Some(text.to_owned());
            }
        }
    }
}

impl<'de, S: AsRef<str>> DeserializeSeed<'de> for Below<'_, S> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, S: AsRef<str>> Visitor<'de> for Below<'_, S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            match self.step(&key) {
                Some(below) => map.next_value_seed(below)?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        for index in 0.. {
            let more = match self.step(&index.to_string()) {
                Some(below) => items.next_element_seed(below)?.is_some(),
                None => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.take(text);
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.take(&number.to_string());
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.take(&number.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_asked_for_is_found_at_any_depth() {
        let body = br#"{"a": {"b": [{"c": "x"}, {"c": "y"}], "": 7}, "d": null, "a/b": -1, "e": {"f": {}}}"#;
        let places: [&[&str]; 7] = [
            &["a", "b", "1", "c"],
            &["a", ""],
            &["d"],
            &["a/b"],
            &["a", "b"],
            &["e", "f", "g"],
            &["a", "b", "01", "c"],
        ];
        let found = pick(body, &places).unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found, [some("y"), some("7"), None, some("-1"), None, None, None]);
        assert_eq!(pick::<&str>(b"\"x\"", &[&[]]).unwrap(), [some("x")]);
        for broken in [&b"{"[..], b"", b"{} {}", b"{\"a\": }"] {
            assert!(pick(broken, &places).is_err());
        }
    }

    proptest! {
        /// `serde_json` itself finds the same, by the pointer.
        #[test]
        fn a_pointer_finds_the_same(parts in prop::collection::vec("[ab01]", 0..4), body in json(3)) {
            let value: serde_json::Value = serde_json::from_str(&body).unwrap();
            let pointer: String = parts.iter().map(|part| format!("/{part}")).collect();
            let want = value.pointer(&pointer).and_then(serde_json::Value::as_str).map(str::to_owned);
            prop_assert_eq!(pick(body.as_bytes(), &[&parts]).unwrap(), vec![want]);
        }
    }

    fn json(depth: u32) -> BoxedStrategy<String> {
        let leaf = prop_oneof![Just("\"x\"".to_owned()), Just("null".to_owned()), Just("1.5".to_owned())].boxed();
        leaf.prop_recursive(depth, 24, 3, |inner| {
            let keyed = prop::collection::hash_map("[ab01]", inner.clone(), 0..3);
            prop_oneof![
                prop::collection::vec(inner, 0..3).prop_map(|items| format!("[{}]", items.join(","))),
                keyed.prop_map(|map| {
                    let pairs: Vec<_> = map.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                    format!("{{{}}}", pairs.join(","))
                }),
            ]
        })
        .boxed()
    }
}
