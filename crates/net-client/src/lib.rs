//! Two net clients on a link: ports, peers, back-pressure, link state
