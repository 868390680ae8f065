"""Logging in and out over the wire; what ends a session; what an attempt costs and tells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from argon2 import Parameters, Type
from penstock.registry.v1 import accounts_pb2
from sqlalchemy import select

from registry.access.types import CredentialsRefused
from registry.accounts.passwords import Passwords
from registry.accounts.policy import MAX_SESSIONS
from registry.accounts.sessions import ADDRESS_ATTEMPTS, NAME_ATTEMPTS, Sessions
from registry.accounts.sql import AccountSql
from registry.accounts.types import LoginRefused, LoginThrottled, NoSession
from registry.schema import users
from registry.seals import RowAltered
from runtime.identity import Role
from tests.registry.accounts.rig import PASSWORD, Office, bearing
from tests.registry.harness import refusal

WHO = accounts_pb2.WhoAmIRequest()


def login(name: str = "ann", password: str = PASSWORD) -> accounts_pb2.LogInRequest:
    return accounts_pb2.LogInRequest(name=name, password=password)


async def test_a_session_is_who_logged_in(office: Office) -> None:
    ann = await office.user(role="publisher")
    answer = await (await office.public()).LogIn(login(" ANN "))
    assert answer.user.last_login_at_ms == int(office.ground.clock.now_s * 1000)
    assert answer.expires_at_ms == answer.user.last_login_at_ms + 12 * 3600 * 1000
    me = await (await office.public()).WhoAmI(WHO, metadata=bearing(answer.session))
    assert (me.kind, me.id, me.tenant, me.role) == ("user", ann.user_id, "acme", "publisher")
    assert list(me.scopes) == ["infer", "models:load", "models:publish", "models:read"]
    assert (await office.ground.actions())[1:] == [("login", ann.user_id, "done")]


async def test_neither_session_nor_password_is_stored(sqlite_office: Office) -> None:
    await sqlite_office.user()
    token = await sqlite_office.session()
    stored = b"".join(file.read_bytes() for file in Path(sqlite_office.ground.address).parent.glob("registry.db*"))
    assert b"$argon2id$" in stored
    assert token.rsplit("-", 1)[1].encode() not in stored
    assert PASSWORD.encode() not in stored


async def test_wrong_names_and_wrong_passwords_are_answered_alike(office: Office) -> None:
    ann = await office.user()
    public = await office.public()
    attempts = (login(password="not the password"), login("nobody"), login("\0"), login("x" * 5000), login(password="x" * 5000))
    refused = [await refusal(public.LogIn(attempt)) for attempt in attempts]
    assert {type(error) for error in refused} == {LoginRefused}
    assert len({error.message for error in refused}) == 1
    noted = [action for action in await office.ground.actions() if action[0] == "login"]
    unknown = [("login", "", "refused")] * 3  # such a name may be a password in the wrong field
    assert sorted(noted) == unknown + [("login", ann.user_id, "refused")] * 2


async def test_a_session_ends_after_twelve_hours_whatever_is_done_with_it(office: Office) -> None:
    await office.user()
    token, public = await office.session(), await office.public()
    for _ in range(12):
        await public.WhoAmI(WHO, metadata=bearing(token))
        office.ground.clock.now_s += 3600
    assert isinstance(await refusal(public.WhoAmI(WHO, metadata=bearing(token))), CredentialsRefused)


async def test_logging_out_ends_this_session_alone(office: Office) -> None:
    await office.user()
    first, second = await office.session(), await office.session()
    public = await office.public()
    await public.LogOut(accounts_pb2.LogOutRequest(), metadata=bearing(first))
    assert isinstance(await refusal(public.WhoAmI(WHO, metadata=bearing(first))), CredentialsRefused)
    await public.WhoAmI(WHO, metadata=bearing(second))


async def test_only_a_session_can_be_ended(sqlite_office: Office) -> None:
    key = await sqlite_office.key()
    request = accounts_pb2.LogOutRequest()
    assert isinstance(await refusal((await sqlite_office.accounts()).LogOut(request)), NoSession)
    by_key = (await sqlite_office.public()).LogOut(request, metadata=bearing(key.secret))
    assert isinstance(await refusal(by_key), NoSession)


@pytest.mark.parametrize("change", [{"password": "another long password"}, {"disabled": True}])
async def test_a_new_password_or_disabling_ends_all_sessions(office: Office, change: dict[str, object]) -> None:
    ann = await office.user()
    await office.user("bob")
    tokens, other = [await office.session(), await office.session()], await office.session("bob")
    update = accounts_pb2.UpdateUserRequest(user_id=ann.user_id, **change)  # type: ignore[arg-type]
    await (await office.accounts()).UpdateUser(update)
    public = await office.public()
    for token in tokens:
        assert isinstance(await refusal(public.WhoAmI(WHO, metadata=bearing(token))), CredentialsRefused)
    await public.WhoAmI(WHO, metadata=bearing(other))
    assert isinstance(await refusal(public.LogIn(login())), LoginRefused)


async def test_a_new_role_counts_at_once(office: Office) -> None:
    ann = await office.user()
    token = await office.session()
    await (await office.accounts()).UpdateUser(accounts_pb2.UpdateUserRequest(user_id=ann.user_id, role="caller"))
    me = await (await office.public()).WhoAmI(WHO, metadata=bearing(token))
    assert (me.role, list(me.scopes)) == ("caller", ["infer", "models:read"])


async def test_of_too_many_sessions_the_oldest_ends(office: Office) -> None:
    await office.user()
    tokens = []
    for _ in range(MAX_SESSIONS + 1):
        office.ground.clock.now_s += 60
        tokens.append(await office.session())
    public = await office.public()
    assert isinstance(await refusal(public.WhoAmI(WHO, metadata=bearing(tokens[0]))), CredentialsRefused)
    for token in tokens[1:]:
        await public.WhoAmI(WHO, metadata=bearing(token))
    assert await office.ground.count("sessions") == MAX_SESSIONS


async def test_sessions_that_have_ended_are_cleared_away(office: Office) -> None:
    await office.user()
    for _ in range(3):
        await office.session()
    office.ground.clock.now_s += 13 * 3600
    await office.session()
    assert await office.ground.count("sessions") == 1


async def test_guesses_at_a_name_are_throttled_and_the_right_password_too(sqlite_office: Office) -> None:
    await sqlite_office.user()
    public = await sqlite_office.public()
    for _ in range(NAME_ATTEMPTS):
        assert isinstance(await refusal(public.LogIn(login(password="guess guess guess"))), LoginRefused)
    refused = await refusal(public.LogIn(login()))
    assert isinstance(refused, LoginThrottled)
    assert refused.retry_after_s == pytest.approx(30)
    sqlite_office.ground.clock.now_s += 30
    await public.LogIn(login())


async def test_guesses_from_an_address_are_throttled_whatever_the_name(sqlite_office: Office) -> None:
    public = await sqlite_office.public()
    refused = [await refusal(public.LogIn(login(f"name-{number}"))) for number in range(ADDRESS_ATTEMPTS + 1)]
    assert [type(error) for error in refused] == [LoginRefused] * ADDRESS_ATTEMPTS + [LoginThrottled]


async def test_logging_in_rightly_costs_no_attempts(sqlite_office: Office) -> None:
    await sqlite_office.user()
    for _ in range(NAME_ATTEMPTS + 1):
        await sqlite_office.session()


async def test_envoys_callers_are_told_apart_by_their_addresses(sqlite_office: Office) -> None:
    envoy, public = await sqlite_office.accounts(Role.ENVOY), await sqlite_office.public()
    for number in range(ADDRESS_ATTEMPTS):
        await refusal(envoy.LogIn(login(f"a{number}"), metadata=(("x-forwarded-for", "9.9.9.9, 10.0.0.1"),)))
    throttled = await refusal(envoy.LogIn(login("x"), metadata=(("x-forwarded-for", "8.8.8.8, 10.0.0.1"),)))
    assert isinstance(throttled, LoginThrottled), "the last address is Envoy's own word"
    other = await refusal(envoy.LogIn(login("y"), metadata=(("x-forwarded-for", "10.0.0.1, 10.0.0.2"),)))
    assert isinstance(other, LoginRefused)
    forged = await refusal(public.LogIn(login("z"), metadata=(("x-forwarded-for", "10.0.0.1"),)))
    assert isinstance(forged, LoginRefused), "nobody else's word counts"


async def test_passwords_do_not_travel_in_the_clear(sqlite_office: Office) -> None:
    await sqlite_office.user()
    assert isinstance(await refusal((await sqlite_office.plaintext()).LogIn(login())), CredentialsRefused)


async def test_a_hash_with_older_parameters_is_made_anew_at_the_next_login(office: Office) -> None:
    await office.user()
    ground = office.ground
    newer = Passwords(
        Parameters(type=Type.ID, version=19, salt_len=16, hash_len=16, time_cost=2, memory_cost=64, parallelism=1)
    )
    sql = AccountSql(ground.seals)
    sessions = Sessions(ground.database, sql, ground.trail, office.bounded, newer, ground.clock)

    async def stored() -> str:
        async with ground.database.reading() as connection:
            return str((await connection.execute(select(users.c.password_hash))).scalar_one())

    before = await stored()
    await sessions.log_in("ann", PASSWORD, "here")
    after = await stored()
    assert "t=1" in before
    assert "m=64,t=2" in after
    await sessions.log_in("ann", PASSWORD, "here")
    assert await stored() == after


async def test_a_password_changed_while_one_logs_in_wins(office: Office) -> None:
    """What was looked up first is looked up again where the session is made."""
    ann = await office.user()
    ground = office.ground

    class Slow(Passwords):
        async def fits(self, stored: str | None, password: str) -> bool:
            answer = await super().fits(stored, password)
            update = accounts_pb2.UpdateUserRequest(user_id=ann.user_id, password="another long password")
            await (await office.accounts()).UpdateUser(update)
            return answer

    slow = Sessions(ground.database, AccountSql(ground.seals), ground.trail, office.bounded, Slow(), ground.clock)
    with pytest.raises(LoginRefused):
        await slow.log_in("ann", PASSWORD, "here")
    assert await ground.count("sessions") == 0


@pytest.mark.parametrize("change", ["role = 'owner'", "tenant = 'globex'", "disabled_at_ms = 1", "password_hash = 'x'"])
async def test_a_user_edited_in_the_database_is_nobody(office: Office, change: str) -> None:
    await office.user(role="caller")
    token = await office.session()
    await office.ground.execute(f"UPDATE users SET {change}")
    public = await office.public()
    assert isinstance(await refusal(public.WhoAmI(WHO, metadata=bearing(token))), RowAltered)
    assert isinstance(await refusal(public.LogIn(login())), RowAltered)
    assert [action for action, _, outcome in await office.ground.actions() if outcome == "failed"] == ["tampering"] * 2


async def test_a_session_given_to_another_user_in_the_database_is_nobodys(office: Office) -> None:
    ann, bob = await office.user(), await office.user("bob", role="caller")
    token = await office.session("bob")
    await office.ground.execute(f"UPDATE sessions SET user_id = '{ann.user_id}' WHERE user_id = '{bob.user_id}'")
    assert isinstance(await refusal((await office.public()).WhoAmI(WHO, metadata=bearing(token))), RowAltered)


async def test_many_log_ins_at_once_keep_to_the_bound(office: Office) -> None:
    await office.user()
    await asyncio.gather(*(office.session() for _ in range(9)))
    assert await office.ground.count("sessions") == 9
