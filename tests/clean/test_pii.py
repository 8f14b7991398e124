from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamix.clean import Step, clean
from datamix.clean.pii import Pii, is_bank_card, is_id_card
from datamix.core.records import SCHEMAS


def redacted(text: str, options: Pii = Pii()) -> str:  # noqa: B008
    batch = pa.RecordBatch.from_pylist([{"slice": 0, "record": 0, "text": text}], schema=SCHEMAS["text"])
    return str(clean(batch, "text", [Step("pii", options)]).batch.column("text")[0].as_py())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("写信给 li.ming+news@mail.example.com.cn。", "写信给 [EMAIL]。"),
        ("邮箱li_ming@example.com", "邮箱[EMAIL]"),
        ("我的手机是13812345678，谢谢", "我的手机是[PHONE]，谢谢"),
        ("+86 138-1234-5678 or 138 1234 5678", "[PHONE] or [PHONE]"),
        ("电话：010-62345678，（0571）87654321", "电话：[PHONE]，[PHONE]"),
        ("全角１３８１２３４５６７８也是", "全角[PHONE]也是"),
        ("Call (212) 555-0123 or 212-555-0123.", "Call [PHONE] or [PHONE]."),
        ("London: +44 20 7946 0958", "London: [PHONE]"),
        ("身份证11010519491231002X。", "身份证[ID_CARD]。"),
        ("卡号 6222 0212 3456 7894 到期", "卡号 [BANK_CARD] 到期"),
        ("card 4111-1111-1111-1111", "card [BANK_CARD]"),
        ("从 8.8.8.8 登录", "从 [IP] 登录"),
        ("2001:4860:4860:0:0:0:0:8888 answered", "[IP] answered"),
    ],
)
def test_what_points_at_a_person_is_replaced(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "price@ 5 yuan, a@b",
        "订单号 20231234567890123456 已发货",
        "2019-12-31 12:30:45, 版本 3.11.4",
        "身份证110105194912310021的校验码不对",
        "110105194913310028 没有十三月",
        "卡号 6222 0212 3456 7890 校验不对",
        "127.0.0.1 和 192.168.1.10 是内网，999.1.1.1 不是地址",
        "圆周率是 3.1415926535897932384626",
        "时间 12:34:56:78，std::vector",
        "血压 150/95，空腹血糖 6.5，电话待定",
        "π≈3.14159，+2168762.679540369",
        "serial 1381234567890",
    ],
)
def test_numbers_that_only_look_alike_stay(text: str) -> None:
    assert redacted(text) == text


def test_each_sort_is_counted_by_itself_and_can_be_switched_off() -> None:
    texts = ["a@example.com 13812345678", "13912345678", "nothing"]
    rows = [{"slice": 0, "record": i, "text": t} for i, t in enumerate(texts)]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["text"])
    cleaned = clean(batch, "text", [Step("pii", Pii(ip=False))])
    assert cleaned.fixed == {"pii_email": 1, "pii_id_card": 0, "pii_bank_card": 0, "pii_phone": 2}
    assert redacted("a@example.com 13812345678", Pii(email=False)) == "a@example.com [PHONE]"


def test_calls_and_kept_meta_are_redacted_and_stay_json() -> None:
    calls = '[{"type": "function", "function": {"name": "sms", "arguments": {"to": 13812345678, "n": 2, "ok": true}}}]'
    record = {
        "slice": 0,
        "record": 0,
        "messages": [
            {"role": "user", "content": "发给他"},
            {"role": "assistant", "content": None, "tool_calls": calls},
        ],
        "meta": '{"from": "li@example.com", "topic": "问"}',
    }
    batch = pa.RecordBatch.from_pylist([record], schema=SCHEMAS["sft"])
    cleaned = clean(batch, "sft", [Step("pii", Pii())])
    mended = cleaned.batch.to_pylist()[0]
    assert mended["messages"][1]["tool_calls"] == calls.replace("13812345678", '"[PHONE]"')
    assert mended["meta"] == '{"from": "[EMAIL]", "topic": "问"}'
    prompt_only = clean(batch, "sft", [Step("pii", Pii(), "prompt")])
    assert prompt_only.batch.equals(batch)


@given(st.text("0123456789", min_size=15, max_size=15))
def test_one_wrong_digit_is_always_found_in_a_card_number(digits: str) -> None:
    body = "4" + digits[:14]
    valid = [body + d for d in "0123456789" if is_bank_card(body + d)]
    assert len(valid) == 1


def test_identity_cards_have_one_check_character() -> None:
    body = "11010519491231002"
    assert [c for c in "0123456789X" if is_id_card(body + c)] == ["X"]
    assert is_id_card("440524188001010014")
    assert is_id_card("１１０１０５１９４９１２３１００２Ｘ")
