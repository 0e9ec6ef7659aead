//! Values that may be written in a short form, such as a string, or in full.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::{Account, Missed, Schedule, Socket, Span, Stage, Step, Stop, Watch, When, Words};

/// A value that has a short form beside its full one.
trait Forms: Sized {
    const EXPECTED: &'static str;

    fn text(_: String) -> Option<Self> {
        None
    }
    fn number(_: u64) -> Option<Self> {
        None
    }
    fn list<'de, A: SeqAccess<'de>>(_: A) -> Result<Option<Self>, A::Error> {
        Ok(None)
    }
    fn fields<'de, A: MapAccess<'de>>(_: A) -> Result<Option<Self>, A::Error> {
        Ok(None)
    }
}

struct Form<T>(PhantomData<T>);

impl<'de, T: Forms> Visitor<'de> for Form<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::text(text.to_owned()).ok_or_else(|| E::invalid_type(de::Unexpected::Str(text), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::number(number).ok_or_else(|| E::invalid_type(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<T, A::Error> {
        T::list(items)?.ok_or_else(|| de::Error::invalid_type(de::Unexpected::Seq, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::fields(fields)?.ok_or_else(|| de::Error::invalid_type(de::Unexpected::Map, &self))
    }
}

macro_rules! by_form {
    ($($kind:ty),*) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
                de.deserialize_any(Form(PhantomData))
            }
        }
    )*};
}
by_form!(Account, Socket, Words, Stop, Step, Schedule, Watch);

impl Forms for Account {
    const EXPECTED: &'static str = "a name or a number";

    fn text(text: String) -> Option<Self> {
        Some(Self(text))
    }
    fn number(number: u64) -> Option<Self> {
        Some(Self(number.to_string()))
    }
}

impl Forms for Words {
    const EXPECTED: &'static str = "a string or a list of strings";

    fn text(text: String) -> Option<Self> {
        Some(Self::One(text))
    }
    fn list<'de, A: SeqAccess<'de>>(items: A) -> Result<Option<Self>, A::Error> {
        all(items).map(|list| Some(Self::List(list)))
    }
}

impl Forms for Stop {
    const EXPECTED: &'static str = "`(signal: …, timeout: …)` or a list of such";

    fn list<'de, A: SeqAccess<'de>>(items: A) -> Result<Option<Self>, A::Error> {
        all(items).map(|list| Some(Self::List(list)))
    }
    fn fields<'de, A: MapAccess<'de>>(fields: A) -> Result<Option<Self>, A::Error> {
        Stage::deserialize(MapAccessDeserializer::new(fields)).map(|stage| Some(Self::One(stage)))
    }
}

impl Forms for Socket {
    const EXPECTED: &'static str = "an address or `(address: …, mode: …, user: …, reuse_port: …, backlog: …)`";

    fn text(text: String) -> Option<Self> {
        Some(Self { address: Some(text), ..Self::default() })
    }
    fn fields<'de, A: MapAccess<'de>>(fields: A) -> Result<Option<Self>, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Full {
            address: Option<String>,
            mode: Option<String>,
            user: Option<Account>,
            reuse_port: Option<bool>,
            backlog: Option<u32>,
        }
        let Full { address, mode, user, reuse_port, backlog } = Full::deserialize(MapAccessDeserializer::new(fields))?;
        Ok(Some(Self { address, mode, user, reuse_port, backlog }))
    }
}

impl Forms for Step {
    const EXPECTED: &'static str = "a shell command or `(run: …, name: …, when: …, timeout: …)`";

    fn text(text: String) -> Option<Self> {
        Some(Self { run: Some(text), ..Self::default() })
    }
    fn fields<'de, A: MapAccess<'de>>(fields: A) -> Result<Option<Self>, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            run: Option<String>,
            name: Option<String>,
            when: Option<When>,
            timeout: Option<Span>,
        }
        let Full { run, name, when, timeout } = Full::deserialize(MapAccessDeserializer::new(fields))?;
        Ok(Some(Self { run, name, when, timeout }))
    }
}

impl Forms for Schedule {
    const EXPECTED: &'static str = "a cron expression or `(cron: …, zone: …, missed: …)`";

    fn text(text: String) -> Option<Self> {
        Some(Self { cron: Some(text), ..Self::default() })
    }
    fn fields<'de, A: MapAccess<'de>>(fields: A) -> Result<Option<Self>, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            cron: Option<String>,
            zone: Option<String>,
            missed: Option<Missed>,
        }
        let Full { cron, zone, missed } = Full::deserialize(MapAccessDeserializer::new(fields))?;
        Ok(Some(Self { cron, zone, missed }))
    }
}

impl Forms for Watch {
    const EXPECTED: &'static str = "a list of paths or `(paths: […], ignore: […], debounce: …, poll: …)`";

    fn list<'de, A: SeqAccess<'de>>(items: A) -> Result<Option<Self>, A::Error> {
        all(items).map(|paths| Some(Self { paths, ..Self::default() }))
    }
    fn fields<'de, A: MapAccess<'de>>(fields: A) -> Result<Option<Self>, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Full {
            paths: Vec<String>,
            ignore: Vec<String>,
            debounce: Option<Span>,
            poll: Option<Span>,
        }
        let Full { paths, ignore, debounce, poll } = Full::deserialize(MapAccessDeserializer::new(fields))?;
        Ok(Some(Self { paths, ignore, debounce, poll, is_full: true }))
    }
}

fn all<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(mut items: A) -> Result<Vec<T>, A::Error> {
    let mut list = Vec::new();
    while let Some(item) = items.next_element()? {
        list.push(item);
    }
    Ok(list)
}
