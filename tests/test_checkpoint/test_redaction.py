"""Passwords and tokens do not appear in messages and logs."""

import logging

import pytest

from mmvmamba.checkpoint.redaction import redact_record, redacted, redacted_url


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('https://host/a/x.pth', 'https://host/a/x.pth'),
        ('https://host:8080/x.pth?token=secret', 'https://host:8080/x.pth?...'),
        ('https://host/x.pth?a=1#secret', 'https://host/x.pth?...'),
        ('https://host/x.pth#secret', 'https://host/x.pth'),
        ('http://user:secret@host/x.pth', 'http://host/x.pth'),
        ('http://secret@host/x.pth', 'http://host/x.pth'),
        ("http://us'er:se@cr'et@host/x.pth", 'http://host/x.pth'),
        ('http://user:se/cret@host/x.pth', 'http://...'),
        ('http://user:12/secret@host/x.pth', 'http://...'),
        ('http://user:12#secret@host/x.pth', 'http://...'),
        ('http://user:secret@[::1]:80/x.pth', 'http://[::1]:80/x.pth'),
        ('HTTPS://user:secret@host?secret', 'HTTPS://host?...'),
        ('htps://user:secret@host/x.pth', 'htps://host/x.pth'),
        ('http:/user:secret@host/x.pth', 'http:/host/x.pth'),  # what pathlib makes of a URL
        ('http://host/file@2.pth', 'http://host/file@2.pth'),
        ('cluster:s3://bucket/x.pth', 'cluster:s3://bucket/x.pth'),
        ('_9http://user:secret@host/', '_9http://host/'),
        ('C:/folder/x.pth?', 'C:/folder/x.pth?'),
        ('/home/user@host/x.pth', '/home/user@host/x.pth'),
        ('no address', 'no address'),
    ],
)
def test_url(text, shown):
    assert redacted(text) == shown


def test_a_single_url_with_forbidden_characters():
    assert redacted_url('http://us er:sec\tret@host/a b\x1b?sec ret') == 'http://host/a%20b%1B?...'
    assert redacted_url("http://host/?'secret") == 'http://host/?...'
    assert redacted_url('http://user:12/sec ret@host/x') == 'http://...'


def test_urls_within_a_text():
    text = (
        "load_from='http://u:secret@a/x.pth?secret=1',\nother=[\"https://b/y?k=secret\", 'c?d']\n"
    )
    shown = "load_from='http://a/x.pth?...',\nother=[\"https://b/y?...\", 'c?d']\n"
    assert redacted(text) == shown


@pytest.mark.parametrize('end', ['', ':', ': 3 found', ')', '),', '], x', "'", '\n'])
def test_what_is_redacted_stays_as_it_is(end):
    shown = f'see (https://host/x.pth?...{end}'
    assert redacted(f'see (https://user:secret@host/x.pth?secret{end}') == shown
    assert redacted(shown) == shown


def test_long_texts_take_no_time():
    text = 'a' * 1_000_000 + ' http://' + 'b' * 1_000_000 + ' ' + 'http:/' * 100_000
    assert redacted(text) == text


def test_log_records(caplog):
    logger = logging.getLogger('test_log_records')
    logger.addFilter(redact_record)
    logger.warning('from %s: %d%%', 'http://u:secret@host/x.pth', 5)
    logger.warning({'not': 'a string'})
    assert caplog.messages == ['from http://host/x.pth: 5%', "{'not': 'a string'}"]


def test_a_log_record_with_wrong_arguments():
    record = logging.LogRecord('x', logging.ERROR, 'x.py', 1, 'loss %d', ('nan',), None)
    assert redact_record(record)
    assert (record.msg, record.args) == ('loss %d', ('nan',))


def test_the_traceback_of_a_log_record(caplog):
    logger = logging.getLogger('test_the_traceback_of_a_log_record')
    logger.addFilter(redact_record)
    try:
        raise OSError('http://u:secret@host/x.pth')
    except OSError:
        logger.exception('failed')
    assert 'OSError: http://host/x.pth' in caplog.text
    assert 'OSError: http://u' not in caplog.text
